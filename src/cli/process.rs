//! What the process asks of the system: signals, limits, and a last word for panics.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::signal::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use super::failure::Failure;

/// Exit status after an interruption.
const INTERRUPTED: i32 = 130;

/// Readies the process: panics become errors, a file size limit is an error and no signal, many files may be open.
///
/// A system that refuses any of it leaves the program working.
pub(super) fn prepare(json: bool) {
    std::panic::set_hook(Box::new(move |info| report_panic(info, json)));
    // With a handler in place the write itself fails with EFBIG.
    let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit { current: maximum, maximum };
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// A flag that the first Ctrl-C or SIGTERM raises; a second one ends the process at once.
///
/// It is one flag for the whole run: what was asked for between two stages of it is not lost.
pub(super) fn cancellation() -> Arc<AtomicBool> {
    static RAISED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    Arc::clone(RAISED.get_or_init(watch_signals))
}

fn watch_signals() -> Arc<AtomicBool> {
    let raised = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down, and only the second ends the process.
        let _ = flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&raised));
        let _ = flag::register(signal, Arc::clone(&raised));
    }
    raised
}

/// Whether the flag is up.
pub(super) fn is_cancelled(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// Runs a command; a panic, already reported by the hook, is a failure like any other.
pub(super) fn guarded(command: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    catch_unwind(AssertUnwindSafe(command)).unwrap_or(Err(Failure::Panicked))
}

fn report_panic(info: &PanicHookInfo<'_>, json: bool) {
    let message = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
    let place = info
        .location()
        .map_or_else(|| "an unknown place".to_owned(), |at| format!("{}:{}", at.file(), at.line()));
    let message = format!("internal error at {place}: {message}");
    let hint = format!(
        "this is a bug in elo-surgery {}; please report it with the line above and the command. \
         Inputs are never written to, and no half-written output was left in place",
        env!("CARGO_PKG_VERSION")
    );
    let text = if json {
        serde_json::json!({ "error": { "code": 1, "message": message, "hint": hint } }).to_string()
    } else {
        format!("error: {message}\nhint: {hint}")
    };
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
