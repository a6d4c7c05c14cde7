//! Turns the SIGBUS of a mapped file that shrank into a flag that its reader checks.
//!
//! A mapped source is registered here. If a page of it is gone when it is touched, the handler puts
//! a page of zeros in its place and marks the mapping; the reader then reports an error and throws
//! the tile away. Signals for other addresses go to whatever handler was there before.

#![expect(unsafe_code, reason = "a signal handler and its registry")]

use std::mem;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const SLOTS: usize = 4096;
const PAGE_MASK: usize = 4095;

struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    hit: AtomicBool,
}

static REGISTRY: [Slot; SLOTS] = [const {
    Slot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), hit: AtomicBool::new(false) }
}; SLOTS];
static PREVIOUS: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static INSTALL: Once = Once::new();

/// A registered mapping; unregisters on drop, which must come before the unmapping.
#[derive(Debug)]
pub(super) struct Guard {
    slot: usize,
}

impl Guard {
    /// Registers a mapping; `None` when the registry is full (read the file instead).
    pub(super) fn register(start: *const u8, len: usize) -> Option<Self> {
        INSTALL.call_once(install);
        let free = |slot: &Slot| {
            slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = REGISTRY.iter().position(free)?;
        REGISTRY[slot].hit.store(false, Ordering::Release);
        REGISTRY[slot].len.store(len, Ordering::Release);
        REGISTRY[slot].start.store(start as usize, Ordering::Release);
        Some(Self { slot })
    }

    /// Whether a page of the mapping was missing when it was touched.
    pub(super) fn was_hit(&self) -> bool {
        REGISTRY[self.slot].hit.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        REGISTRY[self.slot].len.store(0, Ordering::Release);
        REGISTRY[self.slot].start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: both sigaction structs are valid for the call; the handler is async-signal-safe: it
    // touches atomics and calls mmap and sigaction only.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        let mut previous: libc::sigaction = mem::zeroed();
        if libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) == 0 {
            PREVIOUS.store(previous.sa_sigaction, Ordering::Release);
        }
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &REGISTRY {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Acquire);
        if start <= 1 || address < start || address >= start + len {
            continue;
        }
        slot.hit.store(true, Ordering::Release);
        // SAFETY: the page lies inside a live, registered, read-only mapping, so MAP_FIXED replaces
        // nothing but that page.
        let page = unsafe {
            libc::mmap(
                (address & !PAGE_MASK) as *mut libc::c_void,
                PAGE_MASK + 1,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if page != libc::MAP_FAILED {
            return;
        }
    }
    // Not ours: hand back to whoever was there; returning repeats the access under that handler.
    // SAFETY: a zeroed sigaction with the stored handler value is valid.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = PREVIOUS.load(Ordering::Acquire);
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}
