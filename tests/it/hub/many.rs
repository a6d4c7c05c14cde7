//! Many scenes at once: most of them wait most of the time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

const AT_ONCE: usize = 12;

/// Runs `test` on each case, and fails with all that failed.
pub(super) fn each<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let cases: Mutex<VecDeque<T>> = Mutex::new(cases.into_iter().collect());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = next(&cases) {
                    if let Err(failure) = catch_unwind(AssertUnwindSafe(|| test(case))) {
                        let text = failure.downcast_ref::<String>().cloned();
                        let text = text.or_else(|| {
                            failure.downcast_ref::<&str>().map(|&text| text.to_owned())
                        });
                        failures.lock().unwrap().push(text.unwrap_or_default());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} cases failed:\n{}",
        failures.len(),
        failures.join("\n-----\n")
    );
}

fn next<T>(cases: &Mutex<VecDeque<T>>) -> Option<T> {
    cases.lock().unwrap().pop_front()
}
