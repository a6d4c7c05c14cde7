//! What a blend that is not plain must satisfy, and what it takes to know before its first element is computed.

use std::collections::BTreeMap;

use super::{Blend, Divide, Keep, Operand, Part, Plan, Solve, Span, Term};

/// Most elements of a row of which a rank or a softmax is taken, or of rows and columns that have weights of their own: each worker
/// holds such rows whole.
const MAX_COLUMNS: u64 = 1 << 24;

/// Most sums of all columns together where each column has weights of its own: 32 MiB, of each block of rows in flight.
const MAX_SUMS: u64 = 1 << 22;

/// Whether keeps, vote, divide and span of a blend of so many elements are in range and fit each other.
pub(super) fn check(blend: &Blend, elements: u64) -> Result<(), String> {
    if blend.terms.len() > Solve::MAX_TERMS && !blend.is_plain() {
        let (count, most) = (blend.terms.len(), Solve::MAX_TERMS);
        return Err(format!(
            "a blend that is not plain takes {most} terms at most, this has {count}"
        ));
    }
    if blend.deltas && blend.base.is_none() {
        return Err("deltas without a base".into());
    }
    for term in &blend.terms {
        check_term(blend, term, elements)?;
    }
    check_alike(blend)?;
    if let Some(Divide { least, instead }) = blend.divide
        && !(least.is_finite() && least >= 0.0 && instead.is_finite() && instead != 0.0)
    {
        return Err(format!("a sum divided by {instead} below {least}"));
    }
    let columns = match blend.span {
        Span::Part => return Ok(()),
        Span::Rows { columns } | Span::Columns { columns } => columns,
    };
    check_columns("spans", columns, elements)?;
    check_sums(blend)?;
    match blend.solve {
        None => Err("rows or columns, but no weights to find for them".into()),
        Some(Solve::Energy { .. } | Solve::Overlap { .. }) => {
            Err("weights of rows or columns from energies or overlaps".into())
        }
        Some(_) if !blend.counts_everywhere() => {
            Err("weights of rows or columns where not every value counts".into())
        }
        Some(_) => Ok(()),
    }
}

fn check_term(blend: &Blend, term: &Term, elements: u64) -> Result<(), String> {
    if !term.gain.is_finite() || !term.alone.is_finite() {
        return Err(format!("factors {} and {}", term.gain, term.alone));
    }
    if !blend.is_plain() && !term.weight.is_finite() {
        return Err(format!("a weight of {}", term.weight));
    }
    let fits = match term.keep {
        Keep::All => true,
        Keep::Largest { skip, count } => {
            skip.checked_add(count).is_some_and(|taken| taken <= elements)
        }
        Keep::LargestOfAll { share, .. } => {
            let plain = blend.base.iter().chain([&term.operand]).all(Operand::is_plain);
            plain && (0.0..=1.0).contains(&share)
        }
        Keep::Above { magnitude } => magnitude.is_finite() && magnitude >= 0.0,
        Keep::Random { probability, .. } => (0.0..=1.0).contains(&probability),
        Keep::Ranked { low, high, columns, .. } => {
            check_columns("ranks", columns, elements)?;
            0.0 <= low && low <= high && high <= 1.0
        }
        Keep::Varied { share } => (0.0..=1.0).contains(&share),
        Keep::Important { columns } => {
            check_columns("softmaxes", columns, elements)?;
            blend.is_of_deltas()
        }
        Keep::Near { t } => t.is_finite(),
    };
    if fits {
        Ok(())
    } else {
        Err(format!("of {elements} elements it cannot keep {:?}", term.keep))
    }
}

/// Terms of one group must ask for the same share.
pub(super) fn check_groups(plan: &Plan) -> Result<(), String> {
    let mut shares: BTreeMap<u32, f64> = BTreeMap::new();
    for part in plan.tensors.iter().flat_map(|tensor| &tensor.parts) {
        let Part::Blend(blend) = part else { continue };
        for term in &blend.terms {
            let Keep::LargestOfAll { group, share } = term.keep else { continue };
            let first = *shares.entry(group).or_insert(share);
            if first.to_bits() != share.to_bits() {
                return Err(format!("group {group} is to keep {first} and {share} of its values"));
            }
        }
    }
    Ok(())
}

/// What is found once for all terms must be asked for alike.
fn check_alike(blend: &Blend) -> Result<(), String> {
    let alike = |what: fn(&Keep) -> Option<u64>| {
        let mut all = blend.terms.iter().filter_map(|term| what(&term.keep));
        let first = all.next();
        all.all(|other| Some(other) == first)
    };
    let share = |keep: &Keep| match keep {
        Keep::Varied { share } => Some(share.to_bits()),
        _ => None,
    };
    let columns = |keep: &Keep| match keep {
        Keep::Important { columns } => Some(*columns),
        _ => None,
    };
    if alike(share) && alike(columns) {
        return Ok(());
    }
    Err("terms that keep different shares of what varies, or have rows of different lengths".into())
}

fn check_columns(what: &str, columns: u64, elements: u64) -> Result<(), String> {
    if elements == 0 && columns <= MAX_COLUMNS {
        return Ok(());
    }
    if columns == 0 || !elements.is_multiple_of(columns) {
        return Err(format!("{what} of rows of {columns}, of {elements} elements"));
    }
    if columns > MAX_COLUMNS {
        return Err(format!(
            "{what} of rows of {columns} elements; at most {MAX_COLUMNS} fit memory"
        ));
    }
    Ok(())
}

/// Sums of every column are held at once.
fn check_sums(blend: &Blend) -> Result<(), String> {
    let Span::Columns { columns } = blend.span else { return Ok(()) };
    let terms = blend.terms.len() as u64;
    // Those of `engine::sweep::sums_of`.
    let sums = terms.saturating_add(1).saturating_mul(terms) / 2;
    if columns.saturating_mul(sums.saturating_add(terms)) <= MAX_SUMS {
        return Ok(());
    }
    Err(format!("{terms} weights for each of {columns} columns take too much memory"))
}

impl Blend {
    /// Whether values are differences from the base.
    pub(crate) fn is_of_deltas(&self) -> bool {
        self.deltas || (self.solve.is_some() && self.base.is_some())
    }

    /// Whether it is a weighted sum of values, once the weights are known: no term is masked, none outvoted, and none has a
    /// factor where it counts alone.
    pub(crate) fn counts_everywhere(&self) -> bool {
        let plain = |term: &Term| {
            let Term { keep, gain, rescale, alone, .. } = term;
            keep.is_all()
                && !rescale
                && [gain, alone].iter().all(|x| x.to_bits() == 1.0_f64.to_bits())
        };
        let overlap = matches!(self.solve, Some(Solve::Overlap { .. }));
        !overlap && self.vote.is_none() && self.divide.is_none() && self.terms.iter().all(plain)
    }

    /// The looks at the whole part that are needed before an element can be computed.
    pub(crate) fn looks(&self) -> Looks {
        let elements = self.elements();
        let any = |keep: fn(&Keep) -> bool| self.terms.iter().any(|term| keep(&term.keep));
        let largest = |term: &Term| {
            let ranks = term.keep.ranks(elements).into_iter().flatten();
            ranks.into_iter().any(|rank| 0 < rank && rank < elements)
        };
        let rows = any(|keep| matches!(keep, Keep::Important { .. }));
        let varied = any(|keep| matches!(keep, Keep::Varied { .. }));
        let ties = varied || self.terms.iter().any(largest);
        let solved = self.solve.is_some() && !matches!(self.span, Span::Rows { .. });
        let sums = solved || self.terms.iter().any(Term::is_rescaled);
        Looks { rows, order: rows || ties, ties, sums }
    }
}

/// Which looks at a whole part a blend takes before it is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks {
    /// One for the divergence of every row.
    pub(crate) rows: bool,
    /// Two for thresholds: the upper, then the lower digit of a magnitude.
    pub(crate) order: bool,
    /// At most one more, to tell equal magnitudes apart by their places.
    pub(crate) ties: bool,
    /// One for sums.
    pub(crate) sums: bool,
}

impl Looks {
    /// How many they are at most.
    pub(crate) fn count(self) -> u32 {
        u32::from(self.rows)
            + 2 * u32::from(self.order)
            + u32::from(self.ties)
            + u32::from(self.sums)
    }
}

impl Term {
    /// Whether a factor must make up for values that are not kept: limited ones are.
    pub(crate) const fn is_rescaled(&self) -> bool {
        self.rescale && !matches!(self.keep, Keep::All | Keep::Near { .. })
    }
}

impl Keep {
    /// For [`Keep::Largest`] of so many elements: how many are inside the edge below it, and how many inside the edge above. Nothing is
    /// to be found out of an edge that has none inside, or all.
    pub(crate) fn ranks(self, elements: u64) -> Option<[u64; 2]> {
        let Self::Largest { skip, count } = self else { return None };
        // Between edges at one place is nothing, wherever that is.
        let skip = if count == 0 { 0 } else { skip };
        Some([skip.saturating_add(count).min(elements), skip.min(elements)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Slice, SourceId};
    use super::*;
    use crate::format::{Dtype, Shape};

    #[test]
    fn rows_fit_their_part_and_memory() {
        for (columns, elements, fits) in [
            (5, 10, true),
            (0, 0, true),
            (5, 0, true),
            (0, 5, false),
            (4, 10, false),
            (MAX_COLUMNS, MAX_COLUMNS, true),
            (2 * MAX_COLUMNS, 2 * MAX_COLUMNS, false),
        ] {
            assert_eq!(check_columns("ranks", columns, elements).is_ok(), fits, "{columns}");
        }
    }

    #[test]
    fn sums_of_columns_fit_memory() {
        let (source, dtype, shape) = (SourceId(0), Dtype::F32, Shape(vec![0]));
        let term = Term::new(Slice { source, bytes: 0..0, dtype, shape }, 1.0);
        let spanned =
            |span| check_sums(&Blend { span, ..Blend::sum(None, vec![term.clone(); 2], 1.0) });
        assert_eq!(spanned(Span::Columns { columns: MAX_SUMS / 5 }), Ok(()));
        assert_eq!(spanned(Span::Rows { columns: MAX_SUMS }), Ok(()));
        let error = spanned(Span::Columns { columns: MAX_SUMS / 5 + 1 });
        assert!(error.is_err_and(|why| why.contains("2 weights for each of 838861 columns")));
    }
}
