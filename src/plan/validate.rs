//! The rules every engine relies on. A plan read from a file is hostile until it has passed.

use std::collections::HashSet;
use std::path::{Component, Path};

use super::{
    Numerics, Operand, Output, PLAN_VERSION, Part, Plan, SidecarContent, Slice, cost, keep,
};
use crate::error::{Error, Result, printable};
use crate::format::Dtype;

/// Most bytes that a plan may write, and most that its blends may read: sums of fewer, and of headers, do not overflow.
const MAX_BYTES: u64 = 1 << 60;

pub(super) fn validate(plan: &Plan) -> Result<()> {
    check(plan).map_err(|problem| Error::Plan { problem })
}

fn check(plan: &Plan) -> Result<(), String> {
    if plan.version != PLAN_VERSION {
        return Err(format!("version {} (this program reads {PLAN_VERSION})", plan.version));
    }
    let mut names = HashSet::new();
    let (mut written, mut read) = (0_u64, 0_u64);
    for tensor in &plan.tensors {
        let in_tensor = |problem| format!("tensor `{}`: {problem}", printable(&tensor.name));
        if !names.insert(tensor.name.as_str()) {
            return Err(in_tensor("it occurs twice".to_owned()));
        }
        check_tensor(plan, tensor).map_err(in_tensor)?;
        written = written.saturating_add(tensor.byte_len());
        read = tensor.parts.iter().map(read_for).fold(read, u64::saturating_add);
        if written > MAX_BYTES || read > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes to write or to read"));
        }
    }
    keep::check_groups(plan)?;
    let mut placed = vec![false; plan.tensors.len()];
    let mut files = HashSet::new();
    for shard in &plan.shards {
        check_file(&shard.file)?;
        if !files.insert(shard.file.as_str()) {
            return Err(format!("file `{}` occurs twice", printable(&shard.file)));
        }
        for &tensor in &shard.tensors {
            match placed.get_mut(tensor) {
                Some(place) if !*place => *place = true,
                _ => {
                    return Err(format!(
                        "`{}` places tensor {tensor} again, or it does not exist",
                        shard.file
                    ));
                }
            }
        }
        if shard.template.is_some_and(|id| source_size(plan, id.0).is_none()) {
            return Err(format!("`{}` names a source that does not exist", shard.file));
        }
    }
    if let Some(missing) = placed.iter().position(|placed| !placed) {
        return Err(format!("tensor `{}` is in no shard", printable(&plan.tensors[missing].name)));
    }
    for sidecar in &plan.sidecars {
        check_file(&sidecar.file)?;
        if !files.insert(sidecar.file.as_str()) {
            return Err(format!("file `{}` occurs twice", printable(&sidecar.file)));
        }
        if matches!(&sidecar.content, SidecarContent::Copy { path, .. } if path.as_os_str().is_empty())
        {
            return Err(format!("`{}` is copied from nowhere", sidecar.file));
        }
    }
    Ok(())
}

/// Bytes that are read for a part.
fn read_for(part: &Part) -> u64 {
    match part {
        Part::Blend(blend) => cost::read(blend),
        Part::Copy(slice) => slice.bytes.end - slice.bytes.start,
        Part::Fill { .. } | Part::Random(_) => 0,
    }
}

fn check_file(file: &str) -> Result<(), String> {
    let plain = |c| matches!(c, Component::Normal(_));
    if file.is_empty() || file.contains('\0') || !Path::new(file).components().all(plain) {
        return Err(format!("`{}` is not a relative path inside the output", printable(file)));
    }
    Ok(())
}

fn source_size(plan: &Plan, id: u32) -> Option<u64> {
    plan.sources.get(id as usize).map(|source| source.identity.size)
}

fn check_tensor(plan: &Plan, tensor: &Output) -> Result<(), String> {
    let opaque = tensor.dtype.bytes().is_none();
    if opaque && !matches!(tensor.parts.as_slice(), [Part::Copy(_)]) {
        return Err(format!("{} tensors can only be copied whole", tensor.dtype));
    }
    if tensor.parts.is_empty() {
        return Err("it has no parts".to_owned());
    }
    let mut filled = 0_u64;
    for part in &tensor.parts {
        for slice in part.slices() {
            check_slice(plan, slice)?;
        }
        check_part(plan, tensor, part)?;
        let elements = tensor.part_elements(part).ok_or("its size overflows 64 bits")?;
        filled = filled.checked_add(elements).ok_or("its size overflows 64 bits")?;
    }
    if !opaque && Some(filled) != tensor.shape.elements() {
        return Err(format!("its parts have {filled} elements, its shape is {}", tensor.shape));
    }
    if !opaque && tensor.shape.byte_len(&tensor.dtype).is_none() {
        return Err(format!("shape {} is too large", tensor.shape));
    }
    Ok(())
}

fn check_part(plan: &Plan, tensor: &Output, part: &Part) -> Result<(), String> {
    match part {
        Part::Copy(slice) if slice.dtype != tensor.dtype => {
            Err(format!("{} bytes copied into a {} tensor", slice.dtype, tensor.dtype))
        }
        Part::Blend(blend) => {
            for operand in blend.operands() {
                operand.check()?;
            }
            let first = blend.terms.first().map(|t| &t.operand).ok_or("a blend without terms")?;
            if let Some(odd) = blend.operands().find(|o| o.elements() != first.elements()) {
                return Err(format!("a blend of shapes {} and {}", first.shape(), odd.shape()));
            }
            let mut dtypes = blend.operands().map(Operand::dtype).chain([&tensor.dtype]);
            if let Some(odd) = dtypes.find(|d| !d.is_float()) {
                return Err(format!("{odd} cannot be computed on"));
            }
            if let Some(chain) = &blend.chain {
                return match plan.numerics {
                    Numerics::Mergekit => chain.check(blend),
                    Numerics::Precise => Err("a chain of roundings in precise arithmetic".into()),
                };
            }
            keep::check(blend, first.elements().unwrap_or(0))?;
            blend.solve.map_or(Ok(()), |solve| solve.check(blend))
        }
        Part::Random(random) => random.check(tensor),
        _ => Ok(()),
    }
}

fn check_slice(plan: &Plan, slice: &Slice) -> Result<(), String> {
    let size = source_size(plan, slice.source.0).ok_or("it names a source that does not exist")?;
    let range = &slice.bytes;
    if range.start > range.end || range.end > size {
        return Err(format!("bytes {range:?} are outside a source of {size} bytes"));
    }
    match (&slice.dtype, slice.shape.byte_len(&slice.dtype)) {
        (Dtype::Other(_), _) => Ok(()),
        (_, Some(len)) if len == range.end - range.start => Ok(()),
        (dtype, _) => {
            Err(format!("shape {} of {dtype} does not take bytes {range:?}", slice.shape))
        }
    }
}
