//! Preparation from end to end: the mix, what must not overlap, what is wrong with files, what a stop leaves.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::pipeline::project::Project;

/// Counts calls, and stops after so many.
#[derive(Default)]
struct Witness {
    calls: Cell<u64>,
    stop_after: Option<u64>,
    notes: RefCell<Vec<String>>,
    wrote: Cell<bool>,
}

impl Watch for Witness {
    fn reading(&self, _: &Path, done: u64, total: u64) {
        assert!(done <= total);
    }

    fn writing(&self, _: &Path, _: u64, _: u64) {
        self.wrote.set(true);
    }

    fn stop(&self) -> bool {
        self.calls.set(self.calls.get() + 1);
        self.stop_after.is_some_and(|limit| self.calls.get() > limit)
    }

    fn note(&self, text: &str) {
        self.notes.borrow_mut().push(text.to_owned());
    }
}

/// A project in a directory of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn loaded(&self, yaml: &str) -> Loaded {
        Project::parse(yaml, &self.0.path().join("elo.yaml")).unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("work/data")
    }

    fn prepare(&self, yaml: &str) -> Result<Prepared> {
        prepare(&self.loaded(yaml), &self.dir(), &Witness::default())
    }

    fn told(&self, yaml: &str) -> String {
        let error = self.prepare(yaml).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(matches!(error, Error::Data { .. }), "{error:?}");
        let root = format!("{}/", self.0.path().display());
        format!("{error} | {}", error.hint().unwrap_or_default()).replace(&root, "")
    }

    fn lines(&self, file: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.dir().join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn texts(&self, file: &str) -> Vec<String> {
        self.lines(file).iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect()
    }
}

/// Documents of a language with lengths that vary.
fn documents(language: &str, count: usize) -> Vec<String> {
    let word = |i: usize| format!("{language}{} ", i * 7919 % 1000);
    (0..count).map(|i| format!("{i} {}", word(i).repeat(1 + i * 31 % 60))).collect()
}

fn jsonl(documents: &[String]) -> String {
    let mut lines = String::new();
    for text in documents {
        writeln!(lines, "{}", json!({ "id": 1.5, "text": text })).unwrap();
    }
    lines
}

const MIXED: &str = "
data:
  pretrain:
    sources:
      - {path: en.jsonl, language: en, weight: 1}
      - {path: ko, language: ko, weight: 9, documents: lines}
  align: {bytes: 40kB}
";

fn mixed() -> Place {
    let place = Place::new();
    place.put("en.jsonl", jsonl(&documents("en", 2000)));
    let ko = documents("ko", 6000);
    place.put("ko/a.txt", ko[..2500].join("\r\n"));
    place.put("ko/deep/b.jsonl", jsonl(&ko[2000..4000]));
    place.put("ko/c.md", format!("\u{feff}{}", ko[4000..].join("\n")));
    place.put("ko/ignored.csv", "x");
    place
}

#[test]
fn the_mix_is_by_bytes_at_every_prefix() {
    let place = mixed();
    let witness = Witness::default();
    let prepared = prepare(&place.loaded(MIXED), &place.dir(), &witness).unwrap();
    let pretrain = prepared.pretrain.clone().unwrap();
    assert_eq!(prepared.duplicates, 500);
    assert_eq!(pretrain.shares.len(), 2);
    for dataset in [&pretrain, prepared.align.as_ref().unwrap()] {
        let texts = place.texts(&dataset.file);
        assert_eq!(texts.len() as u64, dataset.records);
        assert_eq!(texts.iter().map(|t| t.len() as u64).sum::<u64>(), dataset.bytes);
        let longest = texts.iter().map(String::len).max().unwrap() as u64;
        let english = dataset.shares[0].bytes;
        assert!(english.abs_diff(dataset.bytes / 10) <= longest, "{dataset:?}");
        let (mut seen, mut english) = (0_u64, 0_u64);
        for text in &texts {
            seen += text.len() as u64;
            english += if text.contains("en") { text.len() as u64 } else { 0 };
            assert!(english.abs_diff(seen / 10) <= 2 * longest, "{english} of {seen}");
        }
        let digest = blake3::hash(&fs::read(place.dir().join(&dataset.file)).unwrap());
        assert_eq!(digest.to_hex().as_str(), dataset.digest);
    }
    let align = prepared.align.unwrap();
    assert!(align.bytes.abs_diff(40_000) < 1000);
    let shown = witness.notes.borrow().join("\n");
    assert!(shown.contains("`ko` (ko) has") || shown.contains("`en.jsonl` (en) has"), "{shown}");
}

#[test]
fn slices_are_disjoint_by_content() {
    let place = mixed();
    // The same documents under another name, with other white space, and in another language's source.
    let again: Vec<String> = documents("ko", 300).iter().map(|t| t.replace(' ', "  ")).collect();
    place.put("en2.jsonl", jsonl(&[again, documents("e2", 400)].concat()));
    let yaml =
        MIXED.replace("  align:", "      - {path: en2.jsonl, language: en, weight: 0.1}\n  align:");
    let prepared = place.prepare(&yaml.replace("40kB", "200kB")).unwrap();
    let mut seen: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut files = vec![prepared.pretrain.unwrap().file, prepared.align.unwrap().file];
    assert_eq!(prepared.held_out.len(), 2);
    for slice in &prepared.held_out {
        files.push(slice.file.clone());
        assert!(slice.bytes > 0 && slice.records > 0);
    }
    for file in files {
        for text in place.texts(&file) {
            let words = text.split_whitespace().map(str::to_owned).collect();
            assert!(seen.insert(words), "{text} is there twice");
        }
    }
}

#[test]
fn the_same_bytes_whatever_files_are_called() {
    let place = mixed();
    let prepared = place.prepare(MIXED).unwrap();
    let other = Place::new();
    fs::rename(place.0.path().join("ko"), other.0.path().join("ko")).unwrap();
    fs::rename(place.0.path().join("en.jsonl"), other.0.path().join("en.jsonl")).unwrap();
    for (old, new) in [("a.txt", "z.txt"), ("c.md", "0.txt"), ("deep/b.jsonl", "b.json")] {
        fs::rename(other.0.path().join("ko").join(old), other.0.path().join("ko").join(new))
            .unwrap();
    }
    let again = other.prepare(MIXED).unwrap();
    assert_eq!(prepared.pretrain, again.pretrain);
    assert_eq!(prepared.align, again.align);
    assert_eq!(prepared.held_out, again.held_out);
    assert_ne!(prepared.key, again.key);
    let seeded = other.prepare(&format!("seed: 43\n{MIXED}")).unwrap();
    assert_ne!(seeded.pretrain.unwrap().digest, again.pretrain.unwrap().digest);
}

#[test]
fn what_has_not_changed_is_not_done_again() {
    let place = mixed();
    let prepared = place.prepare(MIXED).unwrap();
    let again = |expect_work: bool| {
        let witness = Witness::default();
        let start = Instant::now();
        let prepared = prepare(&place.loaded(MIXED), &place.dir(), &witness).unwrap();
        assert_eq!(witness.wrote.get(), expect_work);
        assert!(expect_work || start.elapsed().as_millis() < 500);
        prepared
    };
    assert_eq!(again(false), prepared);
    // Another time, the same content.
    let text = fs::read(place.0.path().join("en.jsonl")).unwrap();
    place.put("en.jsonl", &text);
    assert_eq!(again(false), prepared);
    // Damage of what was made, and other content of the same size.
    place.put("work/data/align.jsonl", "x");
    assert_eq!(again(true), prepared);
    let mut other = text;
    let at = other.len() - 5;
    other[at] ^= 1;
    place.put("en.jsonl", &other);
    assert_ne!(again(true).key, prepared.key);
    fs::remove_file(place.dir().join("manifest.json")).unwrap();
    again(true);
    place.put("work/data/manifest.json", "{");
    again(true);
    again(false);
    assert!(
        plan(&place.loaded(MIXED))
            .unwrap()
            .is_prepared(&place.loaded(MIXED), &place.dir())
            .unwrap()
    );
}

#[test]
fn a_stop_leaves_nothing_that_counts() {
    let place = mixed();
    let whole = Witness::default();
    let reference = prepare(&place.loaded(MIXED), &place.dir(), &whole).unwrap();
    let calls = whole.calls.get();
    for limit in (0..calls).step_by(usize::try_from(calls / 12).unwrap().max(1)) {
        let place = mixed();
        let witness = Witness { stop_after: Some(limit), ..Witness::default() };
        let stopped = prepare(&place.loaded(MIXED), &place.dir(), &witness);
        assert!(
            matches!(stopped, Err(Error::Interrupted { resumable: true })),
            "{limit} of {calls}"
        );
        assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 0);
        let prepared = place.prepare(MIXED).unwrap();
        assert_eq!(prepared.pretrain, reference.pretrain);
    }
    // What a kill leaves: scratch files, and data without a manifest.
    place.put("work/data/.preparing/0/entries-0", "x");
    fs::remove_file(place.dir().join("manifest.json")).unwrap();
    place.put("work/data/pretrain.jsonl", "half");
    assert_eq!(place.prepare(MIXED).unwrap(), reference);
    assert!(!place.dir().join(".preparing").exists());
}

#[test]
fn files_of_other_settings_go_away() {
    let place = mixed();
    place.prepare(MIXED).unwrap();
    assert!(place.dir().join("held-out-en.jsonl").exists());
    let yaml = "data: {pretrain: {sources: [{path: ko, language: ko}], bytes: 50kB}}";
    let prepared = place.prepare(yaml).unwrap();
    assert!(!place.dir().join("held-out-en.jsonl").exists());
    assert!(prepared.pretrain.unwrap().bytes.abs_diff(50_000) < 1000);
}

fn chats(language: &str, count: usize) -> Vec<Value> {
    let turn = |i: usize| {
        json!([
            { "from": "human", "value": format!("{language} {i}?") },
            { "from": "gpt", "value": format!("{language} ").repeat(i % 20 + 1) },
        ])
    };
    (0..count).map(|i| json!({ "conversations": turn(i) })).collect()
}

#[test]
fn chats_are_mixed_and_held_out() {
    let place = Place::new();
    place.put("en.json", serde_json::to_string_pretty(&chats("en", 300)).unwrap());
    let lines: Vec<String> = chats("ko", 200).iter().map(Value::to_string).collect();
    place.put("ko.jsonl", lines.join("\n"));
    let yaml =
        "data: {sft: {sources: [{path: en.json, language: en}, {path: ko.jsonl, language: ko}]}}";
    let prepared = place.prepare(yaml).unwrap();
    let sft = prepared.sft.unwrap();
    assert_eq!(sft.format, DataFormat::Messages);
    assert!(sft.shares[0].bytes.abs_diff(sft.shares[1].bytes) <= 100, "{sft:?}");
    let names: Vec<&str> = prepared.held_out.iter().map(|slice| slice.name.as_str()).collect();
    assert_eq!(names, ["chat/en", "chat/ko"]);
    let line = &place.lines(&sft.file)[0];
    assert_eq!(line["messages"][0]["role"], "user");
    assert_eq!(line["messages"][1]["role"], "assistant");
    assert!(place.prepare(&format!("{yaml}\nsft: {{enabled: false}}")).unwrap().sft.is_none());
}

/// A table with one column of text and one list of messages.
fn parquet_file(path: &Path, rows: usize) {
    let schema = "message schema {
        required int64 id;
        optional binary text (UTF8);
        optional group messages (LIST) { repeated group list { optional group element {
            optional binary role (UTF8);
            optional binary content (UTF8);
        } } }
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let texts = documents("pq", rows);
    let mut group = writer.next_row_group().unwrap();
    let mut column = 0;
    while let Some(mut open) = group.next_column().unwrap() {
        match open.untyped() {
            ColumnWriter::Int64ColumnWriter(typed) => {
                typed.write_batch(&vec![1; rows], None, None).unwrap();
            }
            ColumnWriter::ByteArrayColumnWriter(typed) if column == 1 => {
                let values: Vec<ByteArray> = texts.iter().map(|t| t.as_str().into()).collect();
                typed.write_batch(&values, Some(&vec![1; rows]), None).unwrap();
            }
            ColumnWriter::ByteArrayColumnWriter(typed) => {
                // Two messages a row.
                let value = |i: usize| match (column, i % 2) {
                    (2, 0) => "user".into(),
                    (2, _) => "assistant".into(),
                    _ => ByteArray::from(texts[i / 2].as_str()),
                };
                let values: Vec<ByteArray> = (0..2 * rows).map(value).collect();
                let repeats: Vec<i16> = (0..2 * rows).map(|i| i16::from(i % 2 == 1)).collect();
                typed.write_batch(&values, Some(&vec![4; 2 * rows]), Some(&repeats)).unwrap();
            }
            _ => unreachable!("no other columns"),
        }
        open.close().unwrap();
        column += 1;
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_text_and_chats() {
    let place = Place::new();
    place.put("x", "");
    parquet_file(&place.0.path().join("t.parquet"), 300);
    let yaml = "data:
  pretrain: {sources: [{path: '*.parquet', language: pq}]}
  sft: {sources: [{path: t.parquet, language: pq}]}";
    let prepared = place.prepare(yaml).unwrap();
    let (pretrain, sft) = (prepared.pretrain.unwrap(), prepared.sft.unwrap());
    assert!(pretrain.records > 200 && sft.records > 200);
    let wanted: BTreeSet<String> = documents("pq", 300).into_iter().collect();
    assert!(place.texts(&pretrain.file).iter().all(|text| wanted.contains(text)));
    let chat = &place.lines(&sft.file)[0]["messages"];
    assert_eq!(
        (chat[0]["role"].as_str(), chat[1]["role"].as_str()),
        (Some("user"), Some("assistant"))
    );
    let planned = plan(&place.loaded(yaml)).unwrap();
    assert_eq!(planned.stages.len(), 3);
    assert!(planned.stages[0].shares[0].text_bytes > 0);
    let told =
        place.told("data: {pretrain: {sources: [{path: t.parquet, language: pq, field: body}]}}");
    assert!(told.contains("it has no column `body`; it has `id`, `text`, `messages`"), "{told}");
    let told =
        place.told("data: {pretrain: {sources: [{path: t.parquet, language: pq, field: id}]}}");
    assert!(told.contains("its column `id` is a number, not text"), "{told}");
    let mut bytes = fs::read(place.0.path().join("t.parquet")).unwrap();
    bytes.truncate(bytes.len() / 2);
    place.put("half.parquet", bytes);
    let told = place.told("data: {pretrain: {sources: [{path: half.parquet, language: pq}]}}");
    assert!(told.contains("it is not readable Parquet"), "{told}");
}

fn one(path: &str) -> String {
    format!("data: {{pretrain: {{sources: [{{path: '{path}', language: ko}}]}}}}")
}

#[test]
fn what_is_wrong_with_files_is_named() {
    let place = Place::new();
    place.put("empty.txt", "");
    place.put("blank.txt", "\n \n\n");
    place.put("latin.txt", b"gut\n\nsch\xf6n\n");
    place.put("utf16.txt", b"\xff\xfea\0b\0");
    place.put("nul.jsonl", "{\"text\": \"a\\u0000b\"}\n");
    place.put("field.jsonl", "{\"content\": \"a\", \"id\": 1}\n");
    place.put("number.jsonl", "{\"text\": 5}\n");
    place.put("broken.jsonl", "{\"text\": \"a\"}\n{\"text\": \n{\"text\": \"b\"}\n");
    place.put("broken.json", "[{\"text\": \"a\"},\n {\"text\" 1}]");
    place.put("surrogate.jsonl", "{\"text\": \"\\ud800\"}\n");
    place.put("long.txt", "x".repeat((1 << 20) + 10));
    place.put("a.txt.gz", "x");
    place.put("a.csv", "x");
    place.put("packed/a.jsonl.gz", "x");
    fs::create_dir(place.0.path().join("bare")).unwrap();
    place.put("many.jsonl", "{\"body\": \"a\"}\n".repeat(30));
    place.put("hopeless.jsonl", "{\"body\": \"a\"}\n".repeat(3000));
    place.put("one.txt", "just one document");
    for (path, expected) in [
        ("nowhere.txt", "`nowhere.txt`: there is no such file or directory"),
        ("nowhere/*.txt", "`nowhere/*.txt`: no file matches"),
        ("[", "`[`: it is not a pattern"),
        ("bare", "`bare`: the directory holds no file that is read | files that are read: .txt"),
        ("packed", "`packed`: it holds compressed files only"),
        ("a.txt.gz", "`a.txt.gz`: compressed files are not read | unpack it: gunzip -k FILE"),
        ("a.csv", "`a.csv`: it is of no format that is read"),
        ("empty.txt", "`empty.txt`: it holds no text"),
        ("blank.txt", "`blank.txt`: it holds no text"),
        ("latin.txt", "`latin.txt`, line 3: it is not UTF-8 (byte 4)"),
        ("utf16.txt", "`utf16.txt`: it is UTF-16, not UTF-8 | convert it: iconv"),
        ("nul.jsonl", "`nul.jsonl`, line 1: it holds a NUL character"),
        (
            "field.jsonl",
            "`field.jsonl`, line 1: it has no field `text`; it has `content`, `id` | name",
        ),
        ("number.jsonl", "`number.jsonl`, line 1: its field `text` is a number"),
        ("broken.jsonl", "`broken.jsonl`, line 2: it is not valid JSON: EOF while parsing a value"),
        ("broken.json", "`broken.json`, line 2: it is not valid JSON: expected `:`"),
        ("surrogate.jsonl", "`surrogate.jsonl`, line 1: it is not valid JSON: "),
        ("long.txt", "`long.txt`, line 1: it is longer than 1 MiB"),
        ("many.jsonl", "`many.jsonl`: 30 records cannot be used\n  `many.jsonl` line 1: it has"),
        ("hopeless.jsonl", "`hopeless.jsonl`: the first 100 records cannot be used"),
        ("one.txt", "`one.txt`: none of its documents is left for `"),
    ] {
        let told = place.told(&one(path));
        assert!(told.starts_with(expected), "{path}\n  {told}\n  {expected}");
    }
    let told = place.told(&one("many.jsonl"));
    assert!(told.contains("\n  ... and 20 more"), "{told}");
    let told = place.told("data: {sft: {sources: [{path: one.txt, language: ko}]}}");
    assert!(told.contains("plain text holds no chats"), "{told}");
}

#[test]
fn bad_records_can_be_left_out() {
    let place = Place::new();
    let mut text = jsonl(&documents("ko", 100));
    text.push_str("nonsense\n{\"text\": \" \"}\n{\"id\": 3}\n");
    place.put("a.jsonl", text);
    let yaml = one("a.jsonl").replace("data: {", "data: {on_bad: skip, ");
    let prepared = place.prepare(&yaml).unwrap();
    assert_eq!((prepared.skipped, prepared.empty), (2, 1));
    assert!(place.told(&one("a.jsonl")).contains("2 records cannot be used"));
}

#[test]
fn plain_text_is_cut_as_told() {
    let place = Place::new();
    let text = "one\r\nstill one\r\n\r\n  \r\ntwo\r\n\r\nthree".replace("one", "1\u{feff}");
    for (documents, expected) in [
        ("paragraphs", vec!["1\u{feff}\nstill 1\u{feff}", "two", "three"]),
        ("lines", vec!["1\u{feff}", "still 1\u{feff}", "two", "three"]),
    ] {
        place.put("t.txt", format!("\u{feff}{text}"));
        let yaml = format!(
            "data: {{align: {{sources: [{{path: t.txt, language: ko, documents: {documents}}}]}}, held_out: {{bytes: 0}}}}"
        );
        let prepared = place.prepare(&yaml).unwrap();
        let texts: BTreeSet<String> =
            place.texts(&prepared.align.unwrap().file).into_iter().collect();
        assert_eq!(texts, expected.iter().map(|&t| t.to_owned()).collect());
    }
    let yaml = "data: {align: {sources: [{path: t.txt, language: ko, documents: file}]}, held_out: {bytes: 0}}";
    let prepared = place.prepare(yaml).unwrap();
    let texts = place.texts(&prepared.align.unwrap().file);
    assert_eq!(texts.len(), 1);
    assert!(texts[0].starts_with("1\u{feff}\nstill") && texts[0].ends_with("\n\nthree"));
}

/// Peak memory of this process in kB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_the_corpus() {
    let place = Place::new();
    let file = fs::File::create(place.0.path().join("a.jsonl")).unwrap();
    let mut file = std::io::BufWriter::new(file);
    for i in 0..60_000 {
        let text = format!("{i} ").repeat(60);
        std::io::Write::write_all(&mut file, format!("{{\"text\": \"{text}\"}}\n").as_bytes())
            .unwrap();
    }
    drop(file);
    let before = peak();
    let prepared = place.prepare(&one("a.jsonl")).unwrap();
    assert!(prepared.pretrain.unwrap().bytes > 15_000_000);
    assert!(peak() - before < 40_000, "{} kB", peak() - before);
}

/// MB/s over a corpus of 500 MB: `cargo test --release --lib -- --ignored --nocapture throughput`.
#[test]
#[ignore = "a measurement of 500 MB, for people: cargo test --release --lib -- --ignored --nocapture throughput"]
fn throughput() {
    let place = Place::new();
    let body = documents("en", 600).join(" ");
    for (name, json) in [("a.jsonl", true), ("b.txt", false)] {
        let mut text = String::new();
        let mut i = 0_u64;
        while text.len() < 250_000_000 {
            let start = usize::try_from(i * 37 % 20_000).unwrap();
            let document = format!("{i} {}", &body[start..start + 3000]);
            if json {
                writeln!(text, "{}", json!({ "text": document })).unwrap();
            } else {
                writeln!(text, "{document}\n").unwrap();
            }
            i += 1;
        }
        place.put(name, text);
        let start = Instant::now();
        let prepared = place.prepare(&one(name)).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{name}: {:.0} MB/s, {:?}", 250.0 / seconds, prepared.duplicates);
        let start = Instant::now();
        place.prepare(&one(name)).unwrap();
        eprintln!("  unchanged: {:.4} s", start.elapsed().as_secs_f64());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_corpus_is_mixed_and_divided(
        sizes in prop::collection::vec((1_usize..400, 0_u8..4), 40..160),
        weights in (1_u32..10, 1_u32..10),
        seed in 0_u64..1000,
    ) {
        let place = Place::new();
        let mut files: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (i, (size, kind)) in sizes.iter().enumerate() {
            let name = if kind % 2 == 0 { "a.jsonl" } else { "b.jsonl" };
            // Some documents stand in both.
            let text = format!("{i} {}", "x".repeat(*size));
            files.entry(name).or_default().push(text.clone());
            if *kind == 3 {
                files.entry("a.jsonl").or_default().push(text);
            }
        }
        prop_assume!(files.values().all(|texts| texts.len() > 15) && files.len() == 2);
        for (name, texts) in &files {
            place.put(name, jsonl(texts));
        }
        let yaml = format!(
            "seed: {seed}\ndata:\n  pretrain:\n    sources:\n      - {{path: a.jsonl, language: a, weight: {}}}\n      - {{path: b.jsonl, language: b, weight: {}}}\n",
            weights.0, weights.1,
        );
        let prepared = match place.prepare(&yaml) {
            // So few documents that a slice would be empty.
            Err(Error::Data { .. }) => return Ok(()),
            other => other.unwrap(),
        };
        let mut seen = BTreeSet::new();
        let datasets = [prepared.pretrain.unwrap(), prepared.align.unwrap()];
        for dataset in &datasets {
            let total = f64::from(weights.0 + weights.1);
            let share = f64::from(weights.0) / total;
            let bytes = |bytes: u64| f64::from(u32::try_from(bytes).unwrap());
            let off = (bytes(dataset.shares[0].bytes) - share * bytes(dataset.bytes)).abs();
            // Each source is within a document of its part.
            prop_assert!(off <= 410.0, "{dataset:?}");
            for text in place.texts(&dataset.file) {
                prop_assert!(seen.insert(text));
            }
        }
        for slice in &prepared.held_out {
            for text in place.texts(&slice.file) {
                prop_assert!(seen.insert(text));
            }
        }
    }
}
