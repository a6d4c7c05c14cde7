//! The machine that the built-in backend would run on.

use std::fs;
use std::num::NonZero;
use std::thread;

/// What this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores that this process may use.
    pub cores: u32,
    /// Bytes of RAM that can be had without swapping.
    pub memory: Option<u64>,
}

impl Host {
    /// Asks the system.
    pub fn read() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let told = fs::read_to_string("/proc/meminfo").ok();
        Self {
            cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory: told.as_deref().and_then(available),
        }
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let told = "MemTotal:  16 kB\nMemAvailable:    1024 kB\nBuffers: 1 kB\n";
        assert_eq!(available(told), Some(1 << 20));
        assert_eq!(available("MemTotal: 16 kB\n"), None);
        assert!(Host::read().cores > 0);
    }
}
