//! The loss curve of a stage, from its events file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde_json::Value;

use crate::backend::protocol::StepEvent;

/// Most points that are drawn.
const POINTS: usize = 160;
/// Most bytes that are read: some million steps.
const LARGEST: u64 = 512 << 20;

/// Some steps next to one another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// The last one.
    pub(super) step: u64,
    /// Mean, least and most of their losses.
    pub(super) loss: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// Learning rate of the last one.
    pub(super) lr: Option<f64>,
}

/// Reads a curve. What is not a step with a finite loss is passed over; of steps made twice, after an interruption,
/// the later one counts. `None` where there are not two steps.
pub(super) fn read(path: &Path) -> Option<Vec<Point>> {
    let mut reader = BufReader::new(File::open(path).ok()?.take(LARGEST));
    let mut steps: BTreeMap<u64, (f64, Option<f64>)> = BTreeMap::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).ok()? > 0 {
        if let Some(step) = parse(&line)
            && let Some(loss) = step.loss.filter(|loss| loss.is_finite())
        {
            steps.insert(step.step, (loss, step.lr));
        }
        line.clear();
    }
    (steps.len() > 1).then(|| condense(&steps.into_iter().collect::<Vec<_>>()))
}

/// A step event. Read by way of a value: a tagged enum cannot take floats where numbers keep their digits.
fn parse(line: &[u8]) -> Option<StepEvent> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let is_step = value.get("event").and_then(Value::as_str) == Some("step");
    is_step.then(|| serde_json::from_value(value).ok()).flatten()
}

#[expect(clippy::cast_precision_loss, reason = "a count of steps next to one another")]
fn condense(steps: &[(u64, (f64, Option<f64>))]) -> Vec<Point> {
    let count = steps.len().min(POINTS);
    let shares = (0..count).map(|i| &steps[i * steps.len() / count..(i + 1) * steps.len() / count]);
    shares
        .filter_map(|share| {
            let (step, (_, lr)) = *share.last()?;
            let losses = || share.iter().map(|(_, (loss, _))| *loss);
            Some(Point {
                step,
                loss: losses().sum::<f64>() / share.len() as f64,
                low: losses().fold(f64::INFINITY, f64::min),
                high: losses().fold(f64::NEG_INFINITY, f64::max),
                lr,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_read_past_what_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let text = b"{\"event\":\"start\",\"steps_total\":3}\n{\"event\":\"step\",\"step\":1,\"loss\":2.310,\"lr\":4.1e-06}\n\
            \xff\xfe\n{\"event\":\"step\",\"step\":2,\"loss\":null}\n{\"event\":\"step\",\"step\":3,\"loss\":9.0}\n\
            {\"event\":\"step\",\"step\":3,\"loss\":2.0}\n{\"event\":\"step\",\"st";
        std::fs::write(&path, text).unwrap();
        let points = read(&path).unwrap();
        let shown: Vec<(u64, f64, Option<f64>)> =
            points.iter().map(|p| (p.step, p.loss, p.lr)).collect();
        assert_eq!(shown, [(1, 2.31, Some(4.1e-6)), (3, 2.0, None)]);
        assert_eq!(read(&dir.path().join("none")), None);
    }

    #[test]
    fn long_curves_are_condensed_to_means_and_extremes() {
        let steps: Vec<(u64, (f64, Option<f64>))> =
            (1..=1600_u32).map(|i| (u64::from(i), (f64::from(i), None))).collect();
        let points = condense(&steps);
        assert_eq!(points.len(), POINTS);
        let first = points[0];
        assert_eq!((first.step, first.low, first.high, first.loss), (10, 1.0, 10.0, 5.5));
        assert_eq!(points.last().unwrap().step, 1600);
    }
}
