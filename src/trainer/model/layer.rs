//! One decoder layer, forward and backward.

use super::attention::Inputs;
use super::batch::Batch;
use super::buffers::Buffers;
use super::design::Design;
use super::linear::Linear;
use super::rope::{Heads, Rope};
use super::weights::{Gradients, Weights};
use super::{norm, swiglu};

/// Where the tensors of a layer are.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) first_norm: usize,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    /// Norms of each head's queries and keys (Qwen3).
    pub(super) head_norms: Option<(usize, usize)>,
    pub(super) o: Linear,
    pub(super) second_norm: usize,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// What all layers share in one batch.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) design: &'a Design,
    pub(super) rope: &'a Rope,
    pub(super) weights: &'a Weights,
    pub(super) batch: &'a Batch,
}

/// What the backward pass of a layer needs: `[tokens, ..]` unless said otherwise.
pub(super) struct Kept {
    /// The layer's input.
    pub(super) x: Vec<f32>,
    /// One over the root mean square of `x`, one a token.
    first_inverse: Vec<f32>,
    /// Queries and keys before their norms, and one over the root mean square of each head.
    before_norms: Option<[Vec<f32>; 4]>,
    /// Queries, keys and values as attention reads them: `[span][head][token][head_dim]`.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    log_sums: Vec<f32>,
    /// The attention's output before its projection.
    o: Vec<f32>,
    /// Input of the feed-forward part.
    middle: Vec<f32>,
    second_inverse: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Kept {
    /// Gives all memory back.
    pub(super) fn release(self, buffers: &mut Buffers) {
        let norms = self.before_norms.into_iter().flatten();
        let rest = [self.x, self.first_inverse, self.q, self.k, self.v, self.log_sums, self.o];
        let last = [self.middle, self.second_inverse, self.gate, self.up];
        norms.chain(rest).chain(last).for_each(|b| buffers.give(b));
    }
}

impl<'a> Scene<'a> {
    pub(super) fn tokens(&self) -> usize {
        self.batch.ids.len()
    }

    fn queries(&self) -> Heads<'a> {
        let design = self.design;
        Heads { spans: &self.batch.spans, heads: design.heads, dim: design.head_dim }
    }

    fn keys(&self) -> Heads<'a> {
        Heads { heads: self.design.key_heads, ..self.queries() }
    }
}

impl Layer {
    /// Whether anything of the attention part is trained.
    fn trains_attention(&self, gradients: &Gradients) -> bool {
        let norms = self.head_norms.map(|(q, k)| [q, k]).into_iter().flatten();
        norms.chain([self.first_norm]).any(|n| gradients.wants(n))
            || [self.q, self.k, self.v, self.o].iter().any(|l| l.trains(gradients))
    }

    /// Whether anything of the layer is trained.
    pub(super) fn trains(&self, gradients: &Gradients) -> bool {
        self.trains_attention(gradients)
            || gradients.wants(self.second_norm)
            || [self.gate, self.up, self.down].iter().any(|l| l.trains(gradients))
    }

    /// Forward: the output `[tokens, hidden]` and what the backward pass needs.
    pub(super) fn forward(&self, s: Scene, x: Vec<f32>, b: &mut Buffers) -> (Vec<f32>, Kept) {
        let (design, weights, tokens) = (s.design, s.weights, s.tokens());
        let mut normed = b.take(x.len());
        let mut first_inverse = b.take(tokens);
        let w = weights.values(self.first_norm);
        norm::forward(&x, w, design.epsilon, &mut normed, &mut first_inverse);
        let project = |linear: Linear, b: &mut Buffers| {
            let mut y = b.take(tokens * linear.outputs(weights));
            linear.forward(weights, &normed, &mut y);
            y
        };
        let (q0, k0, v0) = (project(self.q, b), project(self.k, b), project(self.v, b));
        let (q, k, before_norms) = self.turn(s, q0, k0, b);
        let mut v = b.take(v0.len());
        s.keys().gather(&v0, None, &mut v);
        b.give(v0);

        let mut o_heads = b.take(q.len());
        let mut log_sums = b.take(tokens * design.heads);
        let inputs = Inputs { queries: s.queries(), keys: s.keys(), q: &q, k: &k, v: &v };
        inputs.forward(&mut o_heads, &mut log_sums);
        let mut o = b.take(o_heads.len());
        s.queries().scatter(&o_heads, None, &mut o);
        b.give(o_heads);
        let mut middle = b.take(x.len());
        self.o.forward(weights, &o, &mut middle);
        super::network::add_all(&mut middle, &x);

        let mut second_inverse = b.take(tokens);
        let w = weights.values(self.second_norm);
        norm::forward(&middle, w, design.epsilon, &mut normed, &mut second_inverse);
        let mut gate = b.take(tokens * design.inner);
        let mut up = b.take(tokens * design.inner);
        self.gate.forward(weights, &normed, &mut gate);
        self.up.forward(weights, &normed, &mut up);
        let mut act = b.take(gate.len());
        swiglu::forward(&gate, &up, &mut act);
        let mut out = normed;
        self.down.forward(weights, &act, &mut out);
        b.give(act);
        super::network::add_all(&mut out, &middle);
        let kept = Kept {
            x,
            first_inverse,
            before_norms,
            q,
            k,
            v,
            log_sums,
            o,
            middle,
            second_inverse,
            gate,
            up,
        };
        (out, kept)
    }

    /// Norms of the heads where the family has them, then rotary embedding: queries and keys, heads first.
    fn turn(
        &self,
        s: Scene,
        mut q0: Vec<f32>,
        mut k0: Vec<f32>,
        b: &mut Buffers,
    ) -> (Vec<f32>, Vec<f32>, Option<[Vec<f32>; 4]>) {
        let dim = s.design.head_dim;
        let mut before = None;
        if let Some((q_norm, k_norm)) = self.head_norms {
            let normed = |x: Vec<f32>, w: usize, b: &mut Buffers| {
                let (mut y, mut inverse) = (b.take(x.len()), b.take(x.len() / dim));
                norm::forward(&x, s.weights.values(w), s.design.epsilon, &mut y, &mut inverse);
                (y, x, inverse)
            };
            let (q1, q0_kept, q_inverse) = normed(q0, q_norm, b);
            let (k1, k0_kept, k_inverse) = normed(k0, k_norm, b);
            before = Some([q0_kept, q_inverse, k0_kept, k_inverse]);
            (q0, k0) = (q1, k1);
        }
        let (mut q, mut k) = (b.take(q0.len()), b.take(k0.len()));
        s.queries().gather(&q0, Some(s.rope), &mut q);
        s.keys().gather(&k0, Some(s.rope), &mut k);
        b.give(q0);
        b.give(k0);
        (q, k, before)
    }

    /// Backward: from the gradient of the output to that of the input, adding to `gradients` on the way. If
    /// `wants_input` is false nothing below this layer is trained, and what only the input needs is left out.
    pub(super) fn backward(
        &self,
        s: Scene,
        mut kept: Kept,
        d_out: Vec<f32>,
        wants_input: bool,
        gradients: &mut Gradients,
        b: &mut Buffers,
    ) -> Option<Vec<f32>> {
        let mut d_middle = d_out;
        let wants_attention = wants_input || self.trains_attention(gradients);
        self.backward_inner(s, &mut kept, &mut d_middle, wants_attention, gradients, b);
        if wants_attention {
            self.backward_attention(s, &kept, &mut d_middle, wants_input, gradients, b);
        }
        kept.release(b);
        if wants_input {
            return Some(d_middle);
        }
        b.give(d_middle);
        None
    }

    /// The feed-forward part: `d` goes from the gradient of the layer's output to that of `kept.middle`.
    fn backward_inner(
        &self,
        s: Scene,
        kept: &mut Kept,
        d: &mut [f32],
        wants_input: bool,
        gradients: &mut Gradients,
        b: &mut Buffers,
    ) {
        let weights = s.weights;
        let wants_norm = gradients.wants(self.second_norm);
        let wants_maps = self.gate.trains(gradients) || self.up.trains(gradients);
        if !(wants_input || wants_norm || wants_maps || self.down.trains(gradients)) {
            return;
        }
        let mut act = b.take(kept.gate.len());
        self.down.backward_input(weights, d, false, &mut act);
        swiglu::backward(&mut kept.gate, &mut kept.up, &mut act);
        self.down.backward_weights(gradients, &act, d, s.design.hidden);
        b.give(act);
        if wants_maps {
            let mut normed = b.take(d.len());
            let w = weights.values(self.second_norm);
            norm::again(&kept.middle, w, &kept.second_inverse, &mut normed);
            self.gate.backward_weights(gradients, &normed, &kept.gate, s.design.inner);
            self.up.backward_weights(gradients, &normed, &kept.up, s.design.inner);
            b.give(normed);
        }
        if wants_input || wants_norm {
            let mut dy = b.take(d.len());
            self.gate.backward_input(weights, &kept.gate, false, &mut dy);
            self.up.backward_input(weights, &kept.up, true, &mut dy);
            let inverse = &kept.second_inverse;
            if let Some(dw) = gradients.get(self.second_norm) {
                norm::backward_weight(&kept.middle, inverse, &dy, dw);
            }
            let w = weights.values(self.second_norm);
            norm::backward_input(&kept.middle, w, inverse, &dy, d);
            b.give(dy);
        }
    }

    /// The attention part: `d` goes from the gradient of `kept.middle` to that of the layer's input.
    fn backward_attention(
        &self,
        s: Scene,
        kept: &Kept,
        d: &mut [f32],
        wants_input: bool,
        gradients: &mut Gradients,
        b: &mut Buffers,
    ) {
        let weights = s.weights;
        self.o.backward_weights(gradients, &kept.o, d, s.design.hidden);
        let mut d_o = b.take(kept.o.len());
        self.o.backward_input(weights, d, false, &mut d_o);
        let mut d_heads = b.take(d_o.len());
        s.queries().gather(&d_o, None, &mut d_heads);
        let (mut dq, mut dk, mut dv) = (d_o, b.take(kept.k.len()), b.take(kept.v.len()));
        let inputs =
            Inputs { queries: s.queries(), keys: s.keys(), q: &kept.q, k: &kept.k, v: &kept.v };
        inputs.backward(&kept.log_sums, &d_heads, (&mut dq, &mut dk, &mut dv));
        let mut dq0 = d_heads;
        s.queries().scatter(&dq, Some(s.rope), &mut dq0);
        b.give(dq);
        let mut dk0 = b.take(dk.len());
        s.keys().scatter(&dk, Some(s.rope), &mut dk0);
        b.give(dk);
        let mut dv0 = b.take(dv.len());
        s.keys().scatter(&dv, None, &mut dv0);
        b.give(dv);
        if let (Some((q, k)), Some([q0, q_inverse, k0, k_inverse])) =
            (self.head_norms, &kept.before_norms)
        {
            dq0 = through_head_norm(s, q, (q0, q_inverse), dq0, gradients, b);
            dk0 = through_head_norm(s, k, (k0, k_inverse), dk0, gradients, b);
        }
        let maps = [(self.q, dq0), (self.k, dk0), (self.v, dv0)];
        if maps.iter().any(|(map, _)| map.trains(gradients)) {
            let mut normed = b.take(kept.x.len());
            let w = weights.values(self.first_norm);
            norm::again(&kept.x, w, &kept.first_inverse, &mut normed);
            for (map, dy) in &maps {
                map.backward_weights(gradients, &normed, dy, map.outputs(weights));
            }
            b.give(normed);
        }
        if wants_input || gradients.wants(self.first_norm) {
            let mut dy = b.take(kept.x.len());
            for (i, (map, d)) in maps.iter().enumerate() {
                map.backward_input(weights, d, i > 0, &mut dy);
            }
            if let Some(dw) = gradients.get(self.first_norm) {
                norm::backward_weight(&kept.x, &kept.first_inverse, &dy, dw);
            }
            if wants_input {
                let w = weights.values(self.first_norm);
                norm::backward_input(&kept.x, w, &kept.first_inverse, &dy, d);
            }
            b.give(dy);
        }
        maps.into_iter().for_each(|(_, d)| b.give(d));
    }
}

/// From the gradient after the norm of heads to the one before.
fn through_head_norm(
    s: Scene,
    place: usize,
    (x, inverse): (&[f32], &[f32]),
    dy: Vec<f32>,
    gradients: &mut Gradients,
    b: &mut Buffers,
) -> Vec<f32> {
    if let Some(dw) = gradients.get(place) {
        norm::backward_weight(x, inverse, &dy, dw);
    }
    let mut dx = b.zeros(dy.len());
    norm::backward_input(x, s.weights.values(place), inverse, &dy, &mut dx);
    b.give(dy);
    dx
}
