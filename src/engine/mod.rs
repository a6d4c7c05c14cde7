//! Placeholder.

mod device;
mod float;
mod reference;
mod simd;
pub mod statistics;

pub use device::{BlendTile, Device, Health, Operand};
pub use reference::Reference;
pub use simd::Simd;
