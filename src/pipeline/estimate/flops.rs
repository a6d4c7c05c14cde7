//! Arithmetic a token: forward, backward, and what is computed again.

use super::{Request, amount};
use crate::backend::protocol::Method;

/// FLOPs a token. A multiplication and an addition are two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    /// Products with weights, forward.
    pub forward: f64,
    /// Gradients of activations.
    pub activations: f64,
    /// Gradients of weights.
    pub weights: f64,
    /// Attention scores and sums, forward and backward.
    pub attention: f64,
    /// The forward pass of the layers once more, with checkpointing.
    pub again: f64,
}

impl Flops {
    /// With `p` the weights of a layer that a token meets, `n` layers of which `k` are trained, `H` the head's
    /// weights (vocabulary x hidden; looking up the embedding costs nothing):
    ///
    /// * forward: `2 (n p + H)`
    /// * gradients of activations: `2 (n p + H)`, through what is frozen, too. They are taken to reach the first
    ///   layer, which holds for {first, last} and is the most for other choices.
    /// * gradients of weights: full `2 (n p + H)`, layers `2 k p`, adapters `2 a`, whose own forward and backward
    ///   adds `4 a`
    /// * attention: `2 s d` a layer forward, `d = heads x head_dim`, since a token sees half of the sequence `s` on
    ///   average; twice that backward. So `6 n s d`, half of the `12 n s d` of Chowdhery et al. (arXiv 2204.02311,
    ///   appendix B), which does not count the mask. Packed documents attend to less: it is the most.
    ///
    /// Full: `6 N` without the embedding. ELO's detached model: `2 (k p + H) + 2 H + 4 k p`.
    pub fn of(request: &Request<'_>) -> Self {
        let shape = request.shape;
        let layers = amount(shape.layers * shape.active_layer_parameters);
        let head = amount(shape.vocab * shape.hidden);
        let adapters = if request.method == Method::Lora { amount(request.trained()) } else { 0.0 };
        let trained = match request.method {
            Method::Full => layers + head,
            Method::Layers => {
                amount(request.trained_layers.min(shape.layers) * shape.active_layer_parameters)
            }
            Method::Lora => adapters,
        };
        let sequence = f64::from(request.train.sequence_length);
        let scores = 2.0 * sequence * amount(shape.layers * shape.heads * shape.head_dim);
        let again = if request.train.checkpointing { 2.0 * layers + scores } else { 0.0 };
        Self {
            forward: 2.0 * (layers + head + adapters),
            activations: 2.0 * (layers + head + adapters),
            weights: 2.0 * trained,
            attention: 3.0 * scores,
            again,
        }
    }

    /// What the model needs, however it is computed.
    pub fn model(&self) -> f64 {
        self.forward + self.activations + self.weights + self.attention
    }

    /// What is computed.
    pub fn hardware(&self) -> f64 {
        self.model() + self.again
    }
}
