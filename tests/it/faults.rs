//! What the system does to a run: full disks, limits, sources that change, rivals, odd places, odd names.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::checkpoint::{Model, read};
use crate::support::disk::SmallDisk;
use crate::support::process::{Elo, PROGRAM, elo};
use crate::support::random::Random;
use crate::support::skipped;
use crate::support::tree::{assert_same, model_files, tree};

const PATIENCE: Duration = Duration::from_mins(2);

fn chat_vector(root: &Path) -> Elo {
    elo("chat-vector --no-sync")
        .with("--inst", root.join("inst"))
        .with("--base", root.join("base"))
        .with("--into", root.join("into"))
}

/// `inst`, `base` and `into` of one structure.
fn family(root: &Path, model: &Model) {
    for (seed, role) in (1..).zip(["inst", "base", "into"]) {
        Model { seed, ..*model }.at(root, role);
    }
}

/// Too little room is an error with numbers, and the work goes on when there is room.
#[test]
fn a_full_disk_is_told_in_bytes_and_resumed() {
    let temp = TempDir::new().unwrap();
    let model = Model::medium(1);
    family(temp.path(), &model);
    let reference = temp.path().join("reference");
    chat_vector(temp.path()).with("--out", &reference).ok();
    let needed: u64 =
        fs::read_dir(&reference).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    let disk = temp.path().join("disk");
    for percent in [0, 3, 30, 60, 97] {
        let Some(small) = SmallDisk::mount(&disk, (needed * percent / 100).max(64 << 10)) else {
            skipped("a full disk", "tmpfs cannot be mounted here (needs root)");
            return;
        };
        let out = disk.join("out");
        for flags in [&[][..], &["--link", "never"]] {
            let outcome = chat_vector(temp.path()).args(flags).with("--out", &out).run();
            outcome.expect(4, &["not enough space", "bytes needed", "bytes free", "hint"]);
            let free = outcome.stderr.split(" bytes free").next().unwrap();
            let free: u64 = free.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(free <= needed, "{percent} %: free {free}: {outcome}");
            assert!(!out.exists(), "{percent} %: {outcome}");
        }
        small.grow(needed * 2);
        chat_vector(temp.path()).with("--out", &out).ok();
        assert_same(&tree(&out), &tree(&reference), &format!("resumed after {percent} %"));
        assert!(!disk.join(".out.elo-staging").exists());
    }
}

/// The whole need is known before the first byte is written.
#[test]
fn space_is_checked_before_anything_is_written() {
    let temp = TempDir::new().unwrap();
    family(temp.path(), &Model::medium(1));
    let disk = temp.path().join("disk");
    let Some(_small) = SmallDisk::mount(&disk, 20 << 20) else {
        skipped("the check of space", "tmpfs cannot be mounted here (needs root)");
        return;
    };
    let out = disk.join("out");
    let runs = [
        ("chat-vector", chat_vector(temp.path())),
        ("reshard", elo("reshard --shard-size 3MB").arg(temp.path().join("into"))),
        ("extract", elo("extract --layers 1-12").arg(temp.path().join("into"))),
    ];
    let mut late = Vec::new();
    for (verb, run) in runs {
        let outcome = run.with("--out", &out).run();
        outcome.expect(4, &["not enough space"]);
        let said = outcome.stderr.split(" bytes needed").next().unwrap();
        let said: u64 = said.rsplit(' ').next().unwrap().parse().unwrap();
        // Forty megabytes are needed; a figure of one shard means that it was found out on the way.
        if said < 30 << 20 {
            late.push(format!("{verb}: {outcome}"));
        }
        let _gone = fs::remove_dir_all(disk.join(".out.elo-staging"));
    }
    assert!(late.is_empty(), "found out late:\n{}", late.join("\n"));
}

/// A file size limit is an error, not a signal.
#[test]
fn a_file_size_limit_is_an_error() {
    let temp = TempDir::new().unwrap();
    family(temp.path(), &Model::medium(1));
    let out = temp.path().join("out");
    for blocks in [0, 1, 64, 2000] {
        let outcome = chat_vector(temp.path())
            .args(["--link", "never"])
            .with("--out", &out)
            .after(&format!("ulimit -f {blocks}"))
            .run();
        assert_eq!(outcome.signal(), None, "ulimit -f {blocks}: {outcome}");
        assert!(!outcome.panicked(), "{outcome}");
        assert_eq!(outcome.code(), Some(4), "ulimit -f {blocks}: {outcome}");
        assert!(!out.exists());
    }
    chat_vector(temp.path()).with("--out", &out).ok();
}

type Change = fn(&Path);

/// How a source changes under a run.
const CHANGES: [(&str, Change); 7] = [
    ("truncated to nothing", |path| {
        writable(path).set_len(0).unwrap();
    }),
    ("truncated in the middle", |path| {
        let file = writable(path);
        let half = file.metadata().unwrap().len() / 2;
        file.set_len(half).unwrap();
    }),
    ("truncated to a page", |path| {
        writable(path).set_len(4096).unwrap();
    }),
    ("grown", |path| {
        let mut file = writable(path);
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(&[0; 10_000]).unwrap();
    }),
    ("overwritten", |path| {
        let mut file = writable(path);
        let half = file.metadata().unwrap().len() / 2;
        file.seek(SeekFrom::Start(half)).unwrap();
        file.write_all(&vec![0x3c; usize::try_from(half).unwrap()]).unwrap();
    }),
    ("replaced", |path| {
        let other = path.with_extension("other");
        let mut bytes = fs::read(path).unwrap();
        let half = bytes.len() / 2;
        bytes[half..].fill(0x3c);
        fs::write(&other, bytes).unwrap();
        fs::rename(other, path).unwrap();
    }),
    ("unlinked", |path| fs::remove_file(path).unwrap()),
];

fn writable(path: &Path) -> fs::File {
    fs::File::options().write(true).open(path).unwrap()
}

/// Never a signal, never mixed data: exit status 8, or the right output.
#[test]
fn a_source_that_changes_under_a_run_is_noticed() {
    let rounds =
        std::env::var("ELO_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(28_u64);
    let temp = TempDir::new().unwrap();
    let model = Model::medium(1);
    let (clean, work) = (temp.path().join("clean"), temp.path().join("work"));
    family(&clean, &model);
    let reference = temp.path().join("reference");
    let started = Instant::now();
    chat_vector(&clean).args(["--link", "never"]).with("--out", &reference).ok();
    let span = u64::try_from(started.elapsed().as_micros()).unwrap();
    let (mut noticed, mut right, mut early) = (0, 0, 0);
    for round in 0..rounds {
        let mut random = Random::new(round);
        let _gone = fs::remove_dir_all(&work);
        for role in ["inst", "base", "into"] {
            copy_folder(&clean.join(role), &work.join(role));
        }
        let (kind, change) = CHANGES[usize::try_from(round % 7).unwrap()];
        let io = ["mmap", "read"][usize::try_from(round / 7 % 2).unwrap()];
        let role = ["inst", "base", "into"][usize::try_from(random.below(3)).unwrap()];
        let shard = format!("model-{:05}-of-00012.safetensors", 1 + random.below(12));
        let out = temp.path().join("out");
        let _gone = fs::remove_dir_all(&out);
        let _gone = fs::remove_dir_all(temp.path().join(".out.elo-staging"));
        let running =
            chat_vector(&work).args(["--link", "never", "--io", io]).with("--out", &out).start();
        thread::sleep(Duration::from_micros(random.below(span)));
        change(&work.join(role).join(&shard));
        let outcome = running.finish(PATIENCE);
        let what = format!("round {round}: {role}/{shard} {kind} with --io {io}");
        assert_eq!(outcome.signal(), None, "{what}: {outcome}");
        assert!(!outcome.panicked(), "{what}: {outcome}");
        match outcome.code() {
            Some(0) => {
                right += 1;
                let found = model_files(&out);
                // Changed after its bytes were read, or so early that the run began with the changed file: one or the
                // other for the whole output, never some of both.
                if found != model_files(&reference) {
                    let again = temp.path().join("again");
                    chat_vector(&work).with("--out", &again).ok();
                    assert_same(&found, &model_files(&again), &what);
                    fs::remove_dir_all(&again).unwrap();
                    early += 1;
                }
            }
            // Changed before it was opened: the header does not fit, or the file is gone.
            Some(3) => assert!(outcome.stderr.contains(&shard), "{what}: {outcome}"),
            Some(8) => {
                noticed += 1;
                assert!(outcome.stderr.contains(&shard), "{what}: {outcome}");
                assert!(!out.exists(), "{what}: {outcome}");
            }
            code => panic!("{what}: status {code:?}: {outcome}"),
        }
    }
    println!(
        "{rounds} changes: {noticed} noticed, {right} right outputs, {early} of them of the changed source"
    );
    assert!(noticed > 0, "no change came in time to be noticed");
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Of two runs on one output one wins; the other names the winner's process.
#[test]
fn two_runs_on_one_output_do_not_mix() {
    let temp = TempDir::new().unwrap();
    family(temp.path(), &Model::medium(1));
    let reference = temp.path().join("reference");
    chat_vector(temp.path()).with("--out", &reference).ok();
    let mut lost = 0;
    for round in 0..6 {
        let out = temp.path().join(format!("out{round}"));
        let run = || chat_vector(temp.path()).with("--out", &out).args(["--threads", "1"]);
        let first = run().start();
        thread::sleep(Duration::from_millis(round * 20));
        let second = run().start();
        let pids = [first.pid(), second.pid()];
        let ends = [first.finish(PATIENCE), second.finish(PATIENCE)];
        let won = ends.iter().filter(|o| o.code() == Some(0)).count();
        assert_eq!(won, 1, "round {round}: {} {}", ends[0], ends[1]);
        for (i, end) in ends.iter().enumerate() {
            if end.code() == Some(5) {
                lost += 1;
                let rival = format!("process {}", pids[1 - i]);
                assert!(end.stderr.contains(&rival), "round {round}: {rival} is not named: {end}");
            } else {
                // After the winner's end there is an output.
                assert!(matches!(end.code(), Some(0 | 2)), "round {round}: {end}");
            }
        }
        assert_same(&tree(&out), &tree(&reference), &format!("round {round}"));
        assert!(!temp.path().join(format!(".out{round}.elo-staging")).exists());
    }
    assert!(lost > 0, "the runs never met");
}

/// An output that is an input, by whatever name.
#[test]
fn an_output_over_an_input_is_refused() {
    let temp = TempDir::new().unwrap();
    let root = temp.path();
    let model = Model::tiny(1).at(root, "model");
    symlink(&model, root.join("link")).unwrap();
    symlink(root, root.join("up")).unwrap();
    let mut shelf = OsString::from("shelf").into_vec();
    shelf.push(0xff);
    let odd = root.join(OsString::from_vec(shelf));
    Model::tiny(2).write(&odd);
    let before = tree(&model);
    for (from, out) in [
        (&model, root.join("model")),
        (&model, root.join("model/")),
        (&model, root.join("model/.")),
        (&model, root.join("up/model")),
        (&model, root.join("link")),
        (&model, root.join("model/inside")),
        (&model, root.join("model/deep/inside")),
        (&model, root.join("link/inside")),
        (&root.join("link"), root.join("model")),
        (&root.join("link"), root.join("model/inside")),
        (&model, root.to_owned()),
        (&odd, odd.join("inside")),
        (&odd, odd.clone()),
        (&model.join("model-00001-of-00002.safetensors"), root.join("model")),
    ] {
        for flags in [&[][..], &["--overwrite"]] {
            let outcome =
                elo("extract --layers 1 --no-sync").arg(from).with("--out", &out).args(flags).run();
            assert_eq!(outcome.code(), Some(2), "{outcome}");
            assert_eq!(tree(&model), before, "changed by {outcome}");
            assert!(!model.join("deep").exists(), "a folder was made in the input: {outcome}");
        }
    }
}

#[test]
fn few_files_and_little_address_space_are_enough() {
    let temp = TempDir::new().unwrap();
    family(temp.path(), &Model { shards: 40, layers: 40, ..Model::tiny(1) });
    let reference = temp.path().join("reference");
    chat_vector(temp.path()).with("--out", &reference).ok();
    for (i, limit) in ["ulimit -n 64", "ulimit -n 24", "ulimit -v 2097152", "ulimit -v 1000000"]
        .iter()
        .enumerate()
    {
        for io in ["mmap", "read"] {
            let out = temp.path().join(format!("out{i}{io}"));
            chat_vector(temp.path()).with("--io", io).with("--out", &out).after(limit).ok();
            assert_same(&tree(&out), &tree(&reference), limit);
        }
    }
}

#[test]
fn modes_follow_the_umask() {
    let temp = TempDir::new().unwrap();
    let model = Model::tiny(1).at(temp.path(), "model");
    for (umask, files, folder) in
        [("022", 0o644, 0o755), ("077", 0o600, 0o700), ("002", 0o664, 0o775)]
    {
        let out = temp.path().join(umask);
        elo("extract --layers 1")
            .arg(&model)
            .with("--out", &out)
            .after(&format!("umask {umask}"))
            .ok();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&out), folder, "{}", out.display());
        for entry in fs::read_dir(&out).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), files, "{}", path.display());
        }
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let temp = TempDir::new().unwrap();
    let model = Model { layers: 60, ..Model::tiny(1) }.at(temp.path(), "model");
    for words in [
        "inspect",
        "inspect --tensors",
        "inspect --json",
        "plan extract --layers 1",
        "--help",
        "extract --help",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        let mut command = Command::new(PROGRAM);
        command.args(&args);
        if !words.contains("help") {
            command.arg(&model);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdout.take().unwrap();
        let mut one = [0];
        let _first = pipe.read(&mut one);
        drop(pipe);
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(0), "{words} | head -1: {said}");
        let failed = said.contains("error") || said.contains("panicked");
        assert!(!failed, "{words} | head -1: {said}");
    }
    // Closed from the start.
    for closed in ["exec >&-", "exec 2>&-", "exec <&- >&- 2>&-"] {
        let outcome = elo("inspect").arg(&model).after(closed).run();
        assert!(outcome.signal().is_none() && !outcome.panicked(), "{closed}: {outcome}");
        let out = temp.path().join("out");
        let outcome = elo("extract --layers 1 --no-sync --overwrite")
            .arg(&model)
            .with("--out", &out)
            .after(closed)
            .run();
        assert!(outcome.signal().is_none() && !outcome.panicked(), "{closed}: {outcome}");
        assert!(out.exists(), "{closed}: the work is done although nobody listens: {outcome}");
        assert_eq!(read(&out).len(), 12, "{closed}");
    }
}

#[test]
fn names_that_are_not_text_are_names() {
    let temp = TempDir::new().unwrap();
    let root = temp.path().join(OsString::from_vec(b"m\xffd\nel \xc3\x28".to_vec()));
    family(&root, &Model::tiny(1));
    let (plain, odd) =
        (temp.path().join("plain"), root.join(OsString::from_vec(b"out\xfe".to_vec())));
    chat_vector(&root).with("--out", &plain).ok();
    chat_vector(&root).with("--out", &odd).ok();
    assert_eq!(read(&odd), read(&plain));
    elo("inspect").arg(&odd).ok();
    elo("inspect --json").arg(&odd).ok().json();
    elo("verify").arg(&odd).ok();
    let again = chat_vector(&root).with("--out", &odd).fails(2);
    assert!(!again.text().contains('\u{1b}'), "{again}");
    let long = temp.path().join("d".repeat(200)).join("e".repeat(200)).join("o".repeat(230));
    chat_vector(&root).with("--out", &long).ok();
    assert_eq!(read(&long), read(&plain));
    let too_long = temp.path().join("o".repeat(256));
    let outcome = chat_vector(&root).with("--out", &too_long).run();
    assert!(outcome.code().is_some_and(|c| c > 0) && !outcome.panicked(), "{outcome}");
}

#[test]
fn threads_tiles_links_and_digests_do_not_change_the_weights() {
    let temp = TempDir::new().unwrap();
    family(temp.path(), &Model::medium(1));
    let reference = temp.path().join("reference");
    chat_vector(temp.path()).with("--out", &reference).ok();
    let variants = [
        "--threads 1",
        "--threads 2",
        "--threads 8",
        "--threads 8 --tile 64KiB",
        "--threads 3 --tile 1MiB --io read",
        "--link never --memory 64MB",
        "--device cpu",
    ];
    for (i, flags) in variants.iter().enumerate() {
        let out = temp.path().join(format!("v{i}"));
        chat_vector(temp.path()).args(flags.split(' ')).with("--out", &out).ok();
        assert_same(&tree(&out), &tree(&reference), flags);
        fs::remove_dir_all(&out).unwrap();
    }
    for flags in ["--digest sha256", "--digest none"] {
        let out = temp.path().join("digest");
        chat_vector(temp.path()).args(flags.split(' ')).with("--out", &out).ok();
        elo("verify").arg(&out).ok();
        assert_eq!(read(&out), read(&reference), "{flags}");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// Damage of one bit anywhere is found by the digests.
#[test]
fn verify_finds_every_flipped_bit() {
    let temp = TempDir::new().unwrap();
    let model = Model::tiny(1).at(temp.path(), "model");
    let mut random = Random::new(3);
    for digest in ["blake3", "sha256"] {
        let out = temp.path().join(digest);
        elo("extract --layers 1,4 --link never")
            .with("--digest", digest)
            .arg(&model)
            .with("--out", &out)
            .ok();
        elo("verify").arg(&out).ok();
        let files: Vec<PathBuf> = fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.file_name().is_some_and(|n| n != "elo-surgery.json"))
            .collect();
        assert!(files.len() >= 3, "{files:?}");
        for round in 0..20 {
            let path = &files[round % files.len()];
            let good = fs::read(path).unwrap();
            let mut bad = good.clone();
            let at = usize::try_from(random.below(bad.len() as u64)).unwrap();
            bad[at] ^= 1 << random.below(8);
            fs::write(path, bad).unwrap();
            let outcome = elo("verify").arg(&out).run();
            let file = path.file_name().unwrap().to_string_lossy();
            assert!(matches!(outcome.code(), Some(3 | 7)), "bit in byte {at} of {file}: {outcome}");
            assert!(outcome.text().contains(&*file), "bit in byte {at} of {file}: {outcome}");
            fs::write(path, good).unwrap();
        }
        elo("verify").arg(&out).ok();
    }
}

/// Ctrl-C keeps what is done; the same command goes on.
#[test]
fn an_interruption_is_told_and_resumed() {
    let temp = TempDir::new().unwrap();
    family(temp.path(), &Model::medium(1));
    let reference = temp.path().join("reference");
    let started = Instant::now();
    chat_vector(temp.path()).args(["--threads", "1"]).with("--out", &reference).ok();
    let span = u64::try_from(started.elapsed().as_micros()).unwrap();
    let (mut interrupted, mut resumed) = (0, 0);
    for round in 0..10 {
        let out = temp.path().join(format!("out{round}"));
        let run = chat_vector(temp.path()).args(["--threads", "1"]).with("--out", &out);
        let mut running = run.start();
        thread::sleep(Duration::from_micros(span / 4 + span * round / 20));
        if running.is_over() {
            continue;
        }
        running.interrupt();
        let outcome = running.finish(PATIENCE);
        if outcome.code() == Some(0) {
            continue;
        }
        outcome.expect(130, &["interrupted"]);
        interrupted += 1;
        assert!(!out.exists(), "{outcome}");
        let again = run.clone().arg("--json").ok();
        resumed += again.json()["resumed"].as_u64().unwrap();
        assert_same(&tree(&out), &tree(&reference), "after an interruption");
    }
    assert!(
        interrupted > 0 && resumed > 0,
        "{interrupted} interruptions, {resumed} shards resumed"
    );
}

/// Memory of its own stays small whatever the model's size: mapped files do not count, buffers do.
#[test]
fn anonymous_memory_is_bounded() {
    const LIMIT: u64 = 300 << 20;
    let temp = TempDir::new().unwrap();
    // A tensor of 64 MB, three times the work's other buffers.
    let model = Model { vocabulary: 80_000, layers: 2, shards: 3, ..Model::medium(1) };
    family(temp.path(), &model);
    let mut tried = 0;
    for (i, flags) in
        ["--io mmap", "--io read", "--io read --link never --digest sha256"].iter().enumerate()
    {
        let out = temp.path().join(format!("out{i}"));
        let run = chat_vector(temp.path())
            .args(flags.split(' '))
            .args(["--threads", "2"])
            .with("--out", &out);
        let mut running = run.start();
        let status = format!("/proc/{}/status", running.pid());
        let (mut peak, mut samples) = (0, 0);
        while !running.is_over() {
            if let Some(now) = anonymous(&status) {
                peak = peak.max(now);
                samples += 1;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let outcome = running.finish(PATIENCE);
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        assert!(samples > 3, "only {samples} samples with {flags}");
        assert!(peak < LIMIT, "{} MB of anonymous memory with {flags}", peak >> 20);
        println!("{flags}: {} MB of anonymous memory, {samples} samples", peak >> 20);
        tried += 1;
        fs::remove_dir_all(&out).unwrap();
    }
    assert_eq!(tried, 3);
}

fn anonymous(status: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}
