//! What each stretch of an output file is made of: the header, then the parts of its tensors, end to end.

use std::ops::Range;

use crate::format::ShardLayout;
use crate::plan::{Blend, Output, Part, Plan, SourceId};

/// A stretch of an output file.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Its bytes in the file.
    pub(super) out: Range<u64>,
    /// What it holds.
    pub(super) what: What,
}

/// What a stretch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The file's header.
    Header,
    /// Part `part` of tensor `tensor` of the plan.
    Part { tensor: usize, part: usize },
}

/// The stretches of one output file, in order.
#[derive(Debug)]
pub(super) struct Extents<'a> {
    pub(super) layout: &'a ShardLayout,
    plan: &'a Plan,
    list: Vec<Extent>,
}

impl<'a> Extents<'a> {
    pub(super) fn new(plan: &'a Plan, shard: usize, layout: &'a ShardLayout) -> Self {
        let header = Extent { out: 0..layout.header.len() as u64, what: What::Header };
        let mut list = vec![header];
        for placement in &layout.placements {
            let tensor = plan.shards[shard].tensors[placement.tensor];
            let output = &plan.tensors[tensor];
            let mut at = placement.bytes.start;
            for (part, piece) in output.parts.iter().enumerate() {
                let end = at + output.part_len(piece);
                if end > at {
                    list.push(Extent { out: at..end, what: What::Part { tensor, part } });
                }
                at = end;
            }
        }
        Self { layout, plan, list }
    }

    /// The stretches that overlap a range of the file.
    pub(super) fn within(&self, range: &Range<u64>) -> impl Iterator<Item = &Extent> {
        let first = self.list.partition_point(|e| e.out.end <= range.start);
        let end = range.end;
        self.list[first..].iter().take_while(move |e| e.out.start < end)
    }

    /// The tensor and part of a stretch; none for the header.
    pub(super) fn part(&self, extent: &Extent) -> Option<(&'a Output, &'a Part)> {
        match extent.what {
            What::Header => None,
            What::Part { tensor, part } => {
                let output = &self.plan.tensors[tensor];
                Some((output, &output.parts[part]))
            }
        }
    }

    /// The blends that are more than weighted sums, and no chains of roundings: tensor and part of the plan, and bytes in the file.
    pub(super) fn ruled(&self) -> impl Iterator<Item = (usize, usize, &'a Blend, u64)> {
        self.list.iter().filter_map(|extent| match (extent.what, self.part(extent)) {
            (What::Part { tensor, part }, Some((_, Part::Blend(blend))))
                if blend.chain.is_none() && (blend.solve.is_some() || !blend.is_plain()) =>
            {
                Some((tensor, part, blend.as_ref(), extent.out.end - extent.out.start))
            }
            _ => None,
        })
    }

    /// Every source it reads, each once.
    pub(super) fn sources(&self) -> Vec<SourceId> {
        let mut ids: Vec<SourceId> = self
            .list
            .iter()
            .filter_map(|extent| self.part(extent))
            .flat_map(|(_, part)| part.slices())
            .map(|slice| slice.source)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Whether a stretch has the same bytes at the same place in `template`, given that the headers are equal.
    fn is_in_place(&self, extent: &Extent, template: SourceId) -> bool {
        match self.part(extent) {
            None => true,
            Some((_, Part::Copy(slice))) => slice.source == template && slice.bytes == extent.out,
            Some(_) => false,
        }
    }

    /// [`Extents::changes`], if starting with the template's blocks is worth it: at most half of the file differs.
    pub(super) fn few_changes(&self, template: SourceId) -> Option<Vec<Range<u64>>> {
        let changes = self.changes(template);
        (total(&changes) <= self.layout.size / 2).then_some(changes)
    }

    /// The stretches that differ from `template`, neighbours joined.
    pub(super) fn changes(&self, template: SourceId) -> Vec<Range<u64>> {
        let mut changed: Vec<Range<u64>> = Vec::new();
        for extent in self.list.iter().filter(|e| !self.is_in_place(e, template)) {
            match changed.last_mut() {
                Some(last) if last.end == extent.out.start => last.end = extent.out.end,
                _ => changed.push(extent.out.clone()),
            }
        }
        changed
    }
}

/// Bytes in a list of ranges.
pub(super) fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}
