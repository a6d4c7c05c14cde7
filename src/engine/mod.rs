//! Placeholder.

mod device;
mod float;
mod reference;

pub use device::{BlendTile, Device, Health, Operand};
pub use reference::Reference;
