//! The token goes to the Hub and nowhere else.

use std::fs;
use std::time::{Duration, Instant};

use super::fake::TOKEN;
use super::fake::faults::{Fault, Rule};
use super::fake::log::{Origin, Sent};
use super::scene::{REPO, SHARDS, Scene};

/// Commands that talk to the Hub, with everything told that can be told.
fn commands(scene: &Scene) -> Vec<String> {
    vec![
        format!("pull {REPO} --verbose"),
        format!("inspect {REPO} --verbose"),
        format!("extract {REPO} --layers 1 --out {} --verbose", scene.out().display()),
        format!("push {} acme/pushed --private --verbose", scene.original().display()),
        format!("push {} acme/pushed --dry-run --json", scene.original().display()),
        format!("pull {REPO} --json"),
        "pull acme/unknown --json".to_owned(),
    ]
}

#[test]
fn the_token_is_in_no_word_and_no_file() {
    let scene = Scene::new();
    scene.hub.repos().get_mut(REPO).unwrap().private = true;
    for command in commands(&scene) {
        for fault in [
            None,
            Some(Fault::Get500),
            Some(Fault::Get403),
            Some(Fault::Put500),
            Some(Fault::Commit500),
        ] {
            if let Some(fault) = fault {
                scene.hub.fault(Rule::times(fault, 1));
            }
            let run = scene.elo(&command).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
            let outcome = run.run();
            assert!(!outcome.text().contains(TOKEN), "{command} with {fault:?}: {outcome}");
            assert!(!outcome.text().contains("CanaryThat"), "{command} with {fault:?}: {outcome}");
            // `problems` also looks into every file below the scene.
            let problems = scene.problems(&outcome);
            let token: Vec<&String> =
                problems.iter().filter(|problem| problem.contains("token")).collect();
            assert!(token.is_empty(), "{command} with {fault:?}: {token:?}");
            scene.hub.no_faults();
        }
        let _out = fs::remove_dir_all(scene.out());
    }
    let sent = scene.hub.requests().iter().filter(|entry| entry.sent == Sent::Token).count();
    assert!(sent > 0, "the token was never needed: nothing was tested");
}

/// A redirect to another host takes the token with it from nobody.
#[test]
fn redirects_do_not_carry_the_token() {
    let scene = Scene::new();
    scene.hub.fault(Rule::always(Fault::RedirectOther));
    scene.elo(&format!("pull {REPO}")).ok();
    let elsewhere: Vec<_> =
        scene.hub.requests().into_iter().filter(|entry| entry.origin == Origin::Other).collect();
    assert!(!elsewhere.is_empty());
    assert!(elsewhere.iter().all(|entry| entry.sent == Sent::Nothing), "{elsewhere:?}");
}

/// What others on the machine see of a run: its arguments, and those and the environment of what it starts.
#[test]
fn processes_do_not_show_the_token() {
    let scene = Scene::new();
    scene.hub.fault(Rule::always(Fault::Hang).on(SHARDS));
    fs::create_dir_all(scene.work().join("login")).unwrap();
    let file = scene.work().join("login/token");
    fs::write(&file, TOKEN).unwrap();
    let run = scene.elo(&format!("pull {REPO}")).env("HF_TOKEN", "").env("HF_TOKEN_PATH", &file);
    let mut running = run.start();
    let end = Instant::now() + Duration::from_secs(20);
    while !scene.hub.requests().iter().any(|entry| entry.fault == Some("hang"))
        && Instant::now() < end
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    let process = |pid: u32| format!("/proc/{pid}");
    let children =
        fs::read_to_string(format!("{0}/task/{1}/children", process(running.pid()), running.pid()));
    let mut pids: Vec<u32> =
        children.unwrap_or_default().split_whitespace().filter_map(|p| p.parse().ok()).collect();
    pids.push(running.pid());
    for pid in pids {
        for kind in ["cmdline", "environ"] {
            let shown = fs::read(format!("{}/{kind}", process(pid))).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&shown).contains(TOKEN), "{kind} of {pid}");
        }
    }
    running.kill();
    let _killed = running.finish(Duration::from_secs(10));
    assert!(
        scene.hub.requests().iter().any(|entry| entry.sent == Sent::Token),
        "the token's file was not read"
    );
}
