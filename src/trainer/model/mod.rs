//! The model: decoders of the Llama kind, forward and backward, written out by hand.
//!
//! ```text
//!  ids -> embedding -> layer 0 .. n-1 -> norm -> head -> cross-entropy
//!                        |
//!     x + o(attention(rope(norm?(q)), rope(norm?(k)), v)) with q, k, v of rmsnorm(x)
//!     x + down(silu(gate) * up)                            with gate, up of rmsnorm(x)
//! ```
//!
//! Activations are f32, row-major, one row a token; the tokens of all documents of a batch follow one another, so
//! there is no padding. Inside attention they are `[document][head][token][head_dim]`.
//! Peers: `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`, `modeling_qwen3.py` of transformers.

mod attention;
mod batch;
mod buffers;
mod design;
mod head;
mod layer;
mod linear;
mod network;
mod norm;
mod rope;
mod swiglu;
#[cfg(test)]
mod testing;
mod weights;

pub(super) use batch::Batch;
pub(super) use design::Design;
pub(super) use network::Network;
pub(super) use weights::{Gradients, Weight, Weights};
