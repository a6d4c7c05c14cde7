//! The command line as its users meet it: help, errors, projects, streams, exit codes.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use elo_surgery::engine::{Device as _, Simd};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::fixture;
use crate::support::process::{Elo, Outcome, PROGRAM, elo};

/// Every command, in the order of the help.
const COMMANDS: [&str; 33] = [
    "",
    "extract",
    "inject",
    "chat-vector",
    "merge",
    "layers",
    "expand",
    "experts",
    "moe",
    "lora",
    "transplant",
    "reshard",
    "cast",
    "inspect",
    "verify",
    "diff",
    "pull",
    "push",
    "plan",
    "apply",
    "init",
    "run",
    "pretrain",
    "align",
    "sft",
    "evaluate",
    "status",
    "report",
    "render",
    "backend",
    "clean",
    "completions",
    "man",
];

/// Commands within others that have a page of their own in the reference.
const WITHIN: [&str; 3] = ["lora apply", "lora extract", "lora merge"];

/// A directory with models under short names, so that messages read as they would at home.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, model) in [
        ("base", "llama31-base"),
        ("inst", "llama31-inst"),
        ("big", "llama31-instbig"),
        ("target", "llama31-target"),
    ] {
        let model = fixture("golden/models").join(model);
        symlink(model, dir.path().join(name)).unwrap();
    }
    dir
}

/// A project, made as its users make it.
fn project() -> TempDir {
    let dir = workplace();
    run(&dir, "init --model base --inst inst --layers 1,6").ok();
    dir
}

fn run(dir: &TempDir, words: &str) -> Elo {
    elo(words).within(dir.path())
}

/// What people see of a run, without what differs between machines.
fn transcript(dir: &TempDir, words: &str) -> String {
    let Outcome { stdout, stderr, status, .. } = run(dir, words).run();
    let status = status.and_then(|s| s.code()).unwrap();
    let text = format!("$ elo-surgery {words}\n{stdout}{stderr}exit {status}\n");
    let real = fs::canonicalize(dir.path()).unwrap();
    let models = fixture("golden/models");
    let mut text = text.replace(real.to_str().unwrap(), "[DIR]");
    text = text.replace(dir.path().to_str().unwrap(), "[DIR]");
    text.replace(models.to_str().unwrap(), "[MODELS]")
}

fn help(command: &str) -> String {
    elo(command).arg("--help").ok().stdout
}

#[test]
fn help_of_every_command() {
    for command in COMMANDS.into_iter().chain(WITHIN) {
        let name = if command.is_empty() { "program" } else { command }.replace(' ', "-");
        insta::assert_snapshot!(format!("help-{name}"), help(command));
    }
    insta::assert_snapshot!("help-extract-short", elo("extract -h").ok().stdout);
}

#[test]
fn the_list_of_commands_is_complete() {
    let listed = elo("man").ok().stdout;
    for command in &COMMANDS[1..] {
        let name = command.replace('-', "\\-");
        assert!(listed.contains(&format!("elo\\-surgery\\-{name}(1)")), "{command}");
    }
    assert_eq!(listed.matches("(1)").count(), COMMANDS.len() - 1, "{listed}");
}

/// `docs/cli.md` ends with the help of every command. `UPDATE_DOCS=1` writes it.
#[test]
fn the_reference_is_current() {
    const MARK: &str = "<!-- Below this line the text is the program's own help. -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let text = fs::read_to_string(&path).unwrap();
    let head = text.split(MARK).next().unwrap();
    let mut expected = format!("{head}{MARK}");
    for command in COMMANDS.into_iter().chain(WITHIN) {
        let title = format!("elo-surgery {command}");
        let help = help(command);
        let (title, help) = (title.trim(), help.trim_end());
        writeln!(expected, "\n### `{title}`\n\n```text\n{help}\n```").unwrap();
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
    } else {
        assert!(text == expected, "run this test with UPDATE_DOCS=1 to write docs/cli.md");
    }
}

#[test]
fn errors_name_the_flag_and_the_way_out() {
    let dir = workplace();
    let mut told = String::new();
    for words in [
        "extract",
        "extract base --out o",
        "extract base --layers 1,2",
        "extract base --layers 1,33 --out o",
        "extract base --layers 1,x --out o",
        "extract base --layers 1,1 --out o",
        "extract base --layers 3-1 --out o",
        "extract base --layers 1,6 --out target",
        "extract base --layers 1,6 --out base/o",
        "extract base --layers 1,6 --out o --shard-size 5XB",
        "extract base --layers 1,6 --out o --device gpu",
        "extract base --layers 1,6 --out o --memory 10kB",
        "extract nowhere --layers 1,6 --out o",
        "extract org/model --layers 1,6 --out o",
        "extarct base",
        "inject",
        "inject base",
        "inject base --in-place",
        "inject --undo base --all",
        "chat-vector --inst inst --base base",
        "chat-vector --inst big --base base --into target --out o",
        "chat-vector --inst inst --base base --into target --exclude nothing.* --out o",
        "chat-vector --inst inst --base base --into target --include [ --out o",
        "chat-vector --inst inst --base base --into target --layer-scale 1-9=0.5 --out o",
        "chat-vector --inst inst --base base --into target --layer-scale 1-6 --out o",
        "chat-vector --vector base --into target --out o",
        "chat-vector --inst inst --base base --save-vector v --scale 2",
        "cast base --dtype int8 --out o",
        "diff base inst --heatmap model.safetensors",
        "apply nowhere.json --out o",
    ] {
        told.push_str(&transcript(&dir, words));
        told.push('\n');
    }
    insta::assert_snapshot!("errors", told);
    assert!(!dir.path().join("o").exists());
}

#[test]
fn project_files_are_strict() {
    let dir = project();
    let mut told = String::new();
    for (yaml, words) in [
        ("model: base\nlayer: 1,6\n", "extract"),
        ("model: base\nlayers: {a: 1}\n", "extract"),
        ("model: [base]\n", "extract"),
        ("model: base\n", "extract"),
        ("layers: 1,6\n", "extract"),
        ("model: base\nlayers: 1,9\n", "extract"),
        ("model: nowhere\nlayers: 1,6\n", "extract"),
        ("model: base\nmodel: inst\n", "extract"),
        ("model: base: inst\n", "extract"),
        ("model: base\nlayers: 1,6\n", "inject"),
        ("model: base\nlayers: 1,6\n", "chat-vector"),
        ("model: base\ninstruct: inst\n", "chat-vector"),
        ("", "init"),
    ] {
        fs::write(dir.path().join("elo.yaml"), yaml).unwrap();
        writeln!(told, "{yaml}{}", transcript(&dir, words)).unwrap();
    }
    insta::assert_snapshot!("project-errors", told);
}

#[test]
fn errors_for_programs_are_json() {
    let dir = workplace();
    let error = |words: &str| -> Value {
        let outcome = run(&dir, words).run();
        assert_eq!(outcome.stdout, "", "{outcome}");
        let object: Value = serde_json::from_str(&outcome.stderr).unwrap();
        assert_eq!(object["error"]["code"], outcome.code().unwrap());
        object["error"].clone()
    };
    let layer = error("extract base --layers 1,33 --out o --json");
    assert_eq!(layer["from"], "`--layers 1,33`");
    assert_eq!(layer["hint"], "use `--layers 1,6`, or `first,last`");
    assert_eq!(error("extract base --json --no-such-flag")["code"], 2);
    assert_eq!(error("--json inspect nowhere")["code"], 3);
}

#[test]
fn the_three_commands_work_as_written_inside_a_project() {
    let dir = project();
    let at = |path: &str| dir.path().join("work").join(path);
    run(&dir, "extract --layers 1,6").ok();
    run(&dir, "inject").fails(2).expect(2, &["02-pretrain/model", "elo-surgery inject PART"]);
    // Training programs write weights and config, and do not know our record.
    fs::create_dir_all(at("02-pretrain")).unwrap();
    fs::rename(at("01-extract/model"), at("02-pretrain/model")).unwrap();
    fs::remove_file(at("02-pretrain/model/elo-surgery.json")).unwrap();
    run(&dir, "inject").ok();
    let same = run(&dir, "diff base work/03-inject/model --json").ok().json();
    assert_eq!(same["total"]["changed"], 0);
    run(&dir, "chat-vector --inst inst --base base --into target").ok();
    assert!(at("05-chat-vector/model/model.safetensors.index.json").exists());
    // From below, and with nothing named: the injected model gets the vector.
    let below = elo("chat-vector --overwrite --json").within(&at("03-inject")).ok().json();
    assert!(below["out"].as_str().unwrap().ends_with("05-chat-vector/model"));
    let equal = run(&dir, "diff inst work/05-chat-vector/model --json").ok().json();
    assert_eq!(equal["a"], "inst");
}

#[test]
fn a_chat_vector_lies_beside_its_target() {
    let dir = workplace();
    let told = run(&dir, "chat-vector --inst inst --base base --into target").ok();
    assert!(told.stderr.contains("`target-chat-vector`"), "{told}");
    run(&dir, "chat-vector --inst inst --base base --save-vector v").ok();
    run(&dir, "chat-vector --vector v --into target --out w").ok();
    let same = run(&dir, "diff target-chat-vector w --json").ok().json();
    assert_eq!(same["total"]["changed"], 0);
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = workplace();
    let before = fs::read_dir(dir.path()).unwrap().count();
    let verbs = [
        "extract base --layers 1,6 --out o",
        "inject base --into target --out o",
        "chat-vector --inst inst --base base --into target",
        "reshard base --shard-size 100kB --out o",
        "cast base --dtype f32 --out o",
        "inject inst --into target --layers 1,6 --in-place",
    ];
    let mut told = String::new();
    for words in verbs {
        let words = format!("{words} --dry-run --threads 2");
        told.push_str(&transcript(&dir, &words));
        told.push('\n');
        let object = run(&dir, &format!("{words} --json")).ok().json();
        assert_eq!(object["dry_run"], true);
    }
    // Which instructions depends on the machine.
    let told = told.replace(&Simd::new().name(), "simd (...)");
    insta::assert_snapshot!("dry-runs", told);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}

#[test]
fn a_plan_can_be_saved_and_carried_out() {
    let dir = workplace();
    run(&dir, "extract base --layers 1,6 --out direct").ok();
    run(&dir, "plan extract base --layers 1,6 --save p.json").ok();
    run(&dir, "plan --save p.json extract base --layers 1,6").expect_usage("already exists");
    run(&dir, "apply p.json --out applied").ok();
    let same = run(&dir, "diff direct applied --json").ok().json();
    assert_eq!(same["total"]["changed"], 0);
    let printed = run(&dir, "plan extract base --layers 1,6").ok();
    assert_eq!(printed.stdout, fs::read_to_string(dir.path().join("p.json")).unwrap());
    fs::write(dir.path().join("p.json"), "{\"version\": 1}").unwrap();
    run(&dir, "apply p.json --out x").fails(3);
}

#[test]
fn results_for_programs() {
    let dir = workplace();
    let result = run(&dir, "extract base --layers 1,6 --out o --json").ok();
    let object = result.json();
    assert_eq!(object["command"], "extract");
    assert_eq!(object["out"], "o");
    assert_eq!(object["tensors"], 21);
    for line in result.stderr.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["event"].is_string(), "{line}");
    }
    assert_eq!(run(&dir, "verify o --json").ok().json()["problems"], serde_json::json!([]));
    let quiet = run(&dir, "extract base --layers 1,6 --out q -q").ok();
    assert_eq!(quiet.text(), "");
}

#[test]
fn damage_is_exit_code_7() {
    let dir = workplace();
    run(&dir, "extract base --layers 1,6 --out o").ok();
    let config = dir.path().join("o/config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("256", "257")).unwrap();
    let told = run(&dir, "verify o").fails(7);
    assert_eq!(told.stderr, "");
    assert!(told.stdout.contains("config.json"), "{told}");
    let told = run(&dir, "verify o -q").fails(7);
    assert_eq!(told.stdout, "");
    assert!(told.stderr.starts_with("error: "), "{told}");
    let told = run(&dir, "verify o --json").fails(7);
    assert_eq!(told.json()["problems"].as_array().unwrap().len(), 1);
}

#[test]
fn a_change_in_place_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (base, part) =
        (fixture("golden/models/llama31-base"), fixture("golden/models/llama31-inst"));
    fs::create_dir(dir.path().join("m")).unwrap();
    for file in fs::read_dir(&base).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join("m").join(file.file_name())).unwrap();
    }
    let inject = run(&dir, "inject --into m --layers 1,6 --in-place").arg(&part);
    inject.ok();
    let layers = run(&dir, "diff m").arg(&base).arg("--json").ok().json();
    let changed: Vec<&Value> = layers["grid"]["layers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|layer| layer["changed"].as_u64().is_some_and(|n| n > 0))
        .collect();
    assert!(layers["total"]["changed"].as_u64().unwrap() > 0);
    assert!(changed.len() <= 2);
    let told = run(&dir, "inject --undo m").ok();
    assert!(told.stderr.contains("no interrupted change"), "{told}");
}

#[test]
fn what_interrupted_runs_left_is_listed_and_removed() {
    let dir = project();
    let left = dir.path().join("work/03-inject/.model.elo-staging");
    fs::create_dir_all(left.join("tree")).unwrap();
    fs::write(left.join("tree/model.safetensors"), [0; 4096]).unwrap();
    let listed = run(&dir, "clean --json").ok().json();
    assert_eq!(listed["unfinished"][0]["bytes"], 4096);
    assert_eq!(listed["unfinished"][0]["removed"], false);
    let told = run(&dir, "clean").ok();
    assert!(told.stdout.contains("work/03-inject/model"), "{told}");
    assert!(left.exists());
    run(&dir, "clean --yes").ok();
    assert!(!left.exists());
    run(&dir, "clean nowhere").fails(3);
}

#[test]
fn memory_bounds_tiles_and_threads() {
    let dir = workplace();
    let budget = |flags: &str| -> (u64, u64, u64) {
        let words = format!("chat-vector --inst inst --base base --into target -n --json {flags}");
        let memory = run(&dir, &words).ok().json()["memory"].clone();
        let number = |key: &str| memory[key].as_u64().unwrap();
        (number("threads"), number("tile"), number("bytes"))
    };
    assert_eq!(budget("--threads 8 --memory 2GB"), (8, 1 << 20, 8 * 5 * (1 << 20)));
    let (threads, tile, bytes) = budget("--threads 8 --memory 1MB");
    assert_eq!((threads, tile), (3, 64 << 10));
    assert!(bytes <= 1_000_000);
}

#[test]
fn whoever_stops_reading_is_no_error() {
    let script = format!("'{PROGRAM}' completions bash | head -c 10; exit ${{PIPESTATUS[0]}}");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let script =
        format!("'{PROGRAM}' inspect '{}' --tensors >&-", fixture("golden/models/gpt2").display());
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code <= 1), "{output:?}");
}

#[test]
fn a_file_size_limit_is_an_error_and_no_signal() {
    let dir = workplace();
    let run = run(&dir, "extract base --layers 1,6 --out o --link never").after("ulimit -f 8");
    let outcome = run.run();
    assert_eq!(outcome.code(), Some(4), "{outcome}");
    assert!(!dir.path().join("o").exists());
}

#[test]
fn names_need_not_be_utf8() {
    let dir = workplace();
    let name = |bytes: &'static [u8]| dir.path().join(OsStr::from_bytes(bytes));
    symlink(fixture("golden/models/llama31-base"), name(b"m\xff")).unwrap();
    elo("extract --layers 1,6").arg(name(b"m\xff")).with("--out", name(b"o\xfe")).ok();
    assert!(name(b"o\xfe").join("config.json").exists());
    elo("verify").arg(name(b"o\xfe")).ok();
    elo("inspect").arg(name(b"none\xff")).fails(3);
}

#[test]
fn colour_obeys_flag_and_environment() {
    let told = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(PROGRAM);
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command.args(["inspect", "nowhere"]).args(args);
        command.envs(variables.iter().copied());
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let coloured = |text: &str| text.contains('\u{1b}');
    assert!(!coloured(&told(&[], &[])));
    assert!(coloured(&told(&["--color", "always"], &[])));
    assert!(coloured(&told(&[], &[("CLICOLOR_FORCE", "1")])));
    assert!(!coloured(&told(&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")])));
    assert!(!coloured(&told(&["--color=never"], &[("CLICOLOR_FORCE", "1")])));
    assert!(!coloured(&told(&["--color=always", "--json"], &[])));
}

#[test]
fn manual_pages_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    run(&dir, "man --out pages").ok();
    let pages: Vec<PathBuf> =
        fs::read_dir(dir.path().join("pages")).unwrap().map(|page| page.unwrap().path()).collect();
    assert!(pages.len() >= COMMANDS.len(), "{pages:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(elo("completions").arg(shell).ok().stdout.contains("chat-vector"));
    }
}

impl Elo {
    /// Runs and expects a refusal of usage that says this.
    #[track_caller]
    fn expect_usage(&self, words: &str) {
        self.run().expect(2, &[words]);
    }
}

/// Whoever comes from mergekit is told what stands for its flags here.
#[test]
fn flags_of_mergekit_are_answered() {
    for (words, said) in [
        ("merge c.yml --out x --cuda", "tip: mergekit's; `--device cuda`"),
        ("merge c.yml merged", "tip: mergekit's; the result goes to `--out merged`"),
        ("merge c.yml --out x --out-shard-size=5B", "`--shard-size 5GB`"),
        ("plan merge c.yml --lazy-unpickle", "in bounded memory"),
        ("moe c.yml --out x --trust-remote-code", "no code of a model is ever run"),
        ("merge c.yml --out x --json --allow-crimes", "families are not mixed"),
    ] {
        elo(words).run().expect(2, &[said]);
    }
    let other = elo("merge c.yml --out x --tressure").run();
    assert!(other.code() == Some(2) && !other.stderr.contains("mergekit's"), "{other}");
}
