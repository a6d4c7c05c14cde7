//! The report: one HTML file that needs nothing else.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};

use super::view::View;
use crate::error::{Error, Result};
use crate::pipeline::estimate::Outlook;
use crate::pipeline::record::Record;

/// Name of the template; its ending says that values are escaped.
const NAME: &str = "report.html";
const TEMPLATE: &str = include_str!("report.html.j2");

/// What a report shows beside the record.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// The title; the model's name without it.
    pub title: Option<String>,
    /// The estimates, for the arithmetic that full fine-tuning would have taken.
    pub outlook: Option<Outlook>,
}

/// The page for a record. Loss curves are read from the events files below `out`; `heatmap_svg` is a drawing of what
/// changed ([`crate::audit::Heatmap::render`]), taken as it is.
pub fn render(
    record: &Record,
    out: &Path,
    heatmap_svg: Option<String>,
    extra: &Extra,
) -> Result<String> {
    let made = fill(&View::of(record, out, extra), heatmap_svg);
    made.map_err(|e| Error::Unsupported {
        what: "the report".into(),
        reason: e.to_string(),
        hint: "this is a defect of the tool".into(),
    })
}

fn fill(view: &View, heatmap_svg: Option<String>) -> std::result::Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.add_template(NAME, TEMPLATE)?;
    let heatmap = heatmap_svg.map(Value::from_safe_string);
    let view = Value::from(Serde(view));
    environment.get_template(NAME)?.render(context! { heatmap, ..view })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{record, write_events};
    use super::*;
    use crate::pipeline::record::{Check, State};

    fn page(record: &Record) -> String {
        let dir = tempfile::tempdir().unwrap();
        write_events(record, dir.path());
        render(record, dir.path(), None, &Extra::default()).unwrap()
    }

    #[test]
    fn a_page_has_all_its_parts_and_needs_no_network() {
        let html = page(&record());
        for id in [
            "held-out",
            "stages",
            "curves",
            "time",
            "controls",
            "benchmarks",
            "data",
            "checks",
            "manifest",
        ] {
            assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
        }
        assert!(!html.contains("id=\"changes\""), "no heat map was given");
        assert_eq!(html.matches("class=\"line\"").count(), 5, "a curve a trained stage");
        for outside in ["http://", "https://", "<script", "<link", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("expected"), "injection is judged honestly");
        assert!(html.contains("-14.1"), "{html}");
    }

    #[test]
    fn hostile_text_stays_text() {
        let mut record = record();
        let evil = "</style><script>alert(1)</script>\" onload=\"x";
        record.model.path = evil.into();
        record.tool = evil.into();
        record.data[0].languages.insert(evil.into(), 7);
        record.baselines.get_mut("base").unwrap()[0].slice = evil.into();
        for stage in &mut record.stages {
            stage.name.push_str(evil);
            stage.error = Some(evil.into());
            stage.output = Some(evil.into());
            stage.backend = Some(evil.into());
            stage.command = vec![evil.into()];
            stage.notes = vec![evil.into()];
            stage.versions.insert(evil.into(), evil.into());
            stage.checks.push(Check { what: evil.into(), ok: false, detail: evil.into() });
            for measured in &mut stage.measured {
                measured.slice.push_str(evil);
            }
            for score in &mut stage.scores {
                score.task.push_str(evil);
            }
        }
        let extra = Extra { title: Some(evil.into()), outlook: None };
        let html = render(&record, Path::new("/nonexistent"), None, &extra).unwrap();
        assert!(!html.contains("<script") && !html.contains("\" onload"), "{html}");
        assert_eq!(html.matches("</style>").count(), 1);
    }

    #[test]
    fn what_is_absent_is_left_out() {
        let html = page(&Record::default());
        for id in ["held-out", "curves", "controls", "benchmarks", "data", "checks"] {
            assert!(!html.contains(&format!("id=\"{id}\"")), "{id}");
        }
        assert!(html.contains("No stage has been started."));
    }

    #[test]
    fn a_failed_run_is_a_page_too() {
        let mut record = record();
        record.baselines.clear();
        record.baseline_scores.clear();
        record.stages.truncate(4);
        for stage in &mut record.stages {
            stage.measured.clear();
            stage.scores.clear();
        }
        record.stages[3].state = State::Failed;
        record.stages[3].error = Some("CUDA out of memory".into());
        let html = page(&record);
        assert!(html.contains("align failed: CUDA out of memory."), "{html}");
        assert!(!html.contains("id=\"held-out\"") && html.contains("id=\"curves\""));
    }

    #[test]
    fn a_heat_map_is_shown_as_it_is() {
        let svg = "<svg><text>x</text></svg>".to_owned();
        let html = render(&record(), Path::new("none"), Some(svg), &Extra::default()).unwrap();
        assert!(html.contains("<svg><text>x</text></svg>") && html.contains("id=\"changes\""));
    }
}
