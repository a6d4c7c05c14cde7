//! Layer selectors: `1,32`, `first,last`, `-1`, `1-4`, `all`. Layers count from 1, as in the ELO paper.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, printable};

/// A list of layers as the user wrote it, not yet bound to a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSelector {
    text: String,
    items: Vec<Item>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    One(End),
    Range(End, End),
    All,
}

/// A layer counted from the front (from 1) or from the back (1 is the last).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Front(u64),
    Back(u64),
}

/// Why a selector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorProblem {
    /// Not a selector.
    #[error(
        "`{}` is not a layer selector: `{}` is not a layer number",
        printable(text),
        printable(item)
    )]
    Syntax {
        /// The whole selector.
        text: String,
        /// The part that does not parse.
        item: String,
    },
    /// A layer the model does not have.
    #[error("layer {layer} does not exist in `{}` (it has {})", printable(model), Count(*count))]
    NoSuchLayer {
        /// The layer as written.
        layer: String,
        /// The model.
        model: String,
        /// How many layers it has.
        count: u64,
    },
    /// One layer twice.
    #[error("layer {layer} is selected twice by `{}`", printable(text))]
    Twice {
        /// The layer, counting from 1.
        layer: u64,
        /// The whole selector.
        text: String,
    },
    /// A range that runs backwards.
    #[error("the range `{}` is empty", printable(item))]
    EmptyRange {
        /// As written.
        item: String,
    },
    /// A glob does not parse.
    #[error("`{}` is not a glob pattern: {message}", printable(glob))]
    Glob {
        /// The pattern.
        glob: String,
        /// The parser's words.
        message: String,
    },
    /// A glob matches no tensor.
    #[error("`{}` matches no tensor of `{}`", printable(glob), printable(model))]
    MatchesNothing {
        /// The pattern.
        glob: String,
        /// The model.
        model: String,
    },
}

struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("no decoder layers that could be recognised"),
            1 => f.write_str("1 layer"),
            n => write!(f, "{n} layers, 1 to {n}"),
        }
    }
}

impl SelectorProblem {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::NoSuchLayer { count: 0, .. } => {
                "`elo-surgery inspect` lists the tensors; layers are numbered groups like `model.layers.0.`".into()
            }
            Self::NoSuchLayer { count, .. } => format!("use `--layers 1,{count}`, or `first,last`"),
            Self::Glob { .. } | Self::MatchesNothing { .. } => {
                "patterns match whole tensor names, for example `*.mlp.*`; `elo-surgery inspect --tensors` lists them".into()
            }
            _ => "examples: `1,32`, `first,last`, `-1`, `1-4`, `all`; layers count from 1".into(),
        }
    }
}

impl FromStr for LayerSelector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let syntax = |item: &str| Error::Selector {
            problem: SelectorProblem::Syntax { text: text.to_owned(), item: item.to_owned() },
        };
        let items = text
            .split(',')
            .map(str::trim)
            .map(|item| parse_item(item).ok_or_else(|| syntax(item)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { text: text.to_owned(), items })
    }
}

impl fmt::Display for LayerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_item(item: &str) -> Option<Item> {
    if item == "all" {
        return Some(Item::All);
    }
    if let Some(end) = parse_end(item) {
        return Some(Item::One(end));
    }
    // The dash of a range is the first one that is not a sign.
    let dash = item.char_indices().skip(1).find(|(_, c)| *c == '-')?.0;
    Some(Item::Range(parse_end(&item[..dash])?, parse_end(&item[dash + 1..])?))
}

fn parse_end(text: &str) -> Option<End> {
    let number = |digits: &str| {
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten()
    };
    match text {
        "first" => Some(End::Front(1)),
        "last" => Some(End::Back(1)),
        _ => match text.strip_prefix('-') {
            Some(digits) => number(digits).map(End::Back),
            None => number(text).map(End::Front),
        },
    }
}

impl LayerSelector {
    /// Selects layers by their numbers, counting from 1.
    pub fn of_layers(layers: &[u64]) -> Self {
        let items = layers.iter().map(|n| Item::One(End::Front(*n))).collect();
        let text = layers.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        Self { text, items }
    }

    /// Binds the selector to a model of `count` layers: indices from 0, in the order written, each once.
    pub fn resolve(&self, count: u64, model: &str) -> Result<Vec<u64>> {
        let chosen = self.resolve_repeating(count, model)?;
        let mut seen = HashSet::new();
        match chosen.iter().find(|index| !seen.insert(**index)) {
            Some(index) => {
                let (layer, text) = (index + 1, self.text.clone());
                Err(Error::Selector { problem: SelectorProblem::Twice { layer, text } })
            }
            None => Ok(chosen),
        }
    }

    /// The same, for stacks in which a layer may occur more than once.
    pub fn resolve_repeating(&self, count: u64, model: &str) -> Result<Vec<u64>> {
        let mut chosen = Vec::new();
        for item in &self.items {
            let (from, to) = match *item {
                Item::All => (0, count.checked_sub(1).ok_or_else(|| missing("all", model, 0))?),
                Item::One(end) => {
                    let index = end.index(count, model)?;
                    (index, index)
                }
                Item::Range(a, b) => (a.index(count, model)?, b.index(count, model)?),
            };
            if from > to {
                let item = format!("{}-{}", from + 1, to + 1);
                return Err(Error::Selector { problem: SelectorProblem::EmptyRange { item } });
            }
            chosen.extend(from..=to);
        }
        Ok(chosen)
    }
}

impl End {
    fn index(self, count: u64, model: &str) -> Result<u64> {
        match self {
            Self::Front(n) if (1..=count).contains(&n) => Ok(n - 1),
            Self::Back(n) if (1..=count).contains(&n) => Ok(count - n),
            Self::Front(n) => Err(missing(&n.to_string(), model, count)),
            Self::Back(1) => Err(missing("last", model, count)),
            Self::Back(n) => Err(missing(&format!("-{n}"), model, count)),
        }
    }
}

fn missing(layer: &str, model: &str, count: u64) -> Error {
    let (layer, model) = (layer.to_owned(), model.to_owned());
    Error::Selector { problem: SelectorProblem::NoSuchLayer { layer, model, count } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(text: &str, count: u64) -> Result<Vec<u64>> {
        text.parse::<LayerSelector>()?.resolve(count, "m")
    }

    #[test]
    fn spellings() {
        assert_eq!(chosen("1,32", 32).unwrap(), [0, 31]);
        assert_eq!(chosen("first,last", 6).unwrap(), [0, 5]);
        assert_eq!(chosen("-1", 6).unwrap(), [5]);
        assert_eq!(chosen("1-3, 6", 6).unwrap(), [0, 1, 2, 5]);
        assert_eq!(chosen("-3--1", 6).unwrap(), [3, 4, 5]);
        assert_eq!(chosen("first-3", 6).unwrap(), [0, 1, 2]);
        assert_eq!(chosen("all", 2).unwrap(), [0, 1]);
    }

    #[test]
    fn stacks_may_repeat_layers() {
        let stack = |text: &str| text.parse::<LayerSelector>().unwrap().resolve_repeating(4, "m");
        assert_eq!(stack("1-3,2-4").unwrap(), [0, 1, 2, 1, 2, 3]);
        assert_eq!(stack("2,2").unwrap(), [1, 1]);
        assert!(stack("1-5").is_err());
    }

    #[test]
    fn refusals_name_the_layer_and_the_count() {
        let message = |text, count| chosen(text, count).unwrap_err().to_string();
        assert_eq!(message("33", 32), "layer 33 does not exist in `m` (it has 32 layers, 1 to 32)");
        assert_eq!(message("0", 2), "layer 0 does not exist in `m` (it has 2 layers, 1 to 2)");
        assert!(message("first,last", 1).contains("twice"));
        assert!(message("3-1", 5).contains("empty"));
        for bad in ["", "x", "1,,2", "1.5", "--1", "1-", "99999999999999999999"] {
            assert!(chosen(bad, 5).is_err(), "{bad}");
        }
        assert!(message("1", 0).contains("no decoder layers"));
    }
}
