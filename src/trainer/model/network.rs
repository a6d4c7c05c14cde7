//! The whole decoder: loss of a batch, and its gradients down to the lowest tensor that is trained.

use rayon::prelude::*;

use super::batch::Batch;
use super::buffers::Buffers;
use super::design::Design;
use super::head::{Head, Wanted};
use super::layer::{Kept, Layer, Scene};
use super::linear::Linear;
use super::norm;
use super::rope::Rope;
use super::weights::{Gradients, Weights};
use crate::trainer::math::{add, wide};

/// Elements of an elementwise loop that one task takes.
const BLOCK: usize = 1 << 14;

/// A decoder: what it is made of, without the values.
pub(in crate::trainer) struct Network {
    design: Design,
    rope: Rope,
    embedding: usize,
    layers: Vec<Layer>,
    norm: usize,
    head: Head,
    /// Keep only the input of each layer and compute the rest again in the backward pass.
    recompute: bool,
    buffers: Buffers,
}

/// What a layer leaves for the backward pass.
enum Trace {
    Whole(Box<Kept>),
    Input(Vec<f32>),
}

impl Network {
    /// Finds the tensors of a design. `None` if one is missing, which [`Design::of`] has ruled out.
    pub(in crate::trainer) fn new(
        design: Design,
        weights: &Weights,
        longest: usize,
        recompute: bool,
    ) -> Option<Self> {
        let layer = |i: usize| {
            let find = |name: &str| weights.find(&format!("model.layers.{i}.{name}"));
            let linear = |name: &str| {
                let weight = find(&format!("{name}.weight"))?;
                Some(Linear { weight, bias: find(&format!("{name}.bias")) })
            };
            let q_norm = find("self_attn.q_norm.weight");
            Some(Layer {
                first_norm: find("input_layernorm.weight")?,
                q: linear("self_attn.q_proj")?,
                k: linear("self_attn.k_proj")?,
                v: linear("self_attn.v_proj")?,
                head_norms: q_norm.zip(find("self_attn.k_norm.weight")),
                o: linear("self_attn.o_proj")?,
                second_norm: find("post_attention_layernorm.weight")?,
                gate: linear("mlp.gate_proj")?,
                up: linear("mlp.up_proj")?,
                down: linear("mlp.down_proj")?,
            })
        };
        let embedding = weights.find("model.embed_tokens.weight")?;
        Some(Self {
            rope: Rope::new(&design, longest),
            embedding,
            layers: (0..design.layers).map(layer).collect::<Option<_>>()?,
            norm: weights.find("model.norm.weight")?,
            head: Head { matrix: weights.find("lm_head.weight").unwrap_or(embedding) },
            recompute,
            buffers: Buffers::default(),
            design,
        })
    }

    /// Sum of the losses of the predicted tokens, in nats.
    pub(in crate::trainer) fn loss(&mut self, weights: &Weights, batch: &Batch) -> f64 {
        self.pass(weights, batch, None)
    }

    /// The same, and adds the gradients of `share` times that sum to `gradients`.
    pub(in crate::trainer) fn step(
        &mut self,
        weights: &Weights,
        batch: &Batch,
        share: f32,
        gradients: &mut Gradients,
    ) -> f64 {
        self.pass(weights, batch, Some((share, gradients)))
    }

    fn pass(
        &mut self,
        weights: &Weights,
        batch: &Batch,
        wanted: Option<(f32, &mut Gradients)>,
    ) -> f64 {
        let mut buffers = std::mem::take(&mut self.buffers);
        let scene = Scene { design: &self.design, rope: &self.rope, weights, batch };
        let loss = self.run(scene, wanted, &mut buffers);
        self.buffers = buffers;
        loss
    }

    fn run(&self, s: Scene, wanted: Option<(f32, &mut Gradients)>, b: &mut Buffers) -> f64 {
        // Layers below the lowest one that is trained leave no trace.
        let lowest = match &wanted {
            None => self.layers.len(),
            Some((_, g)) if g.wants(self.embedding) => 0,
            Some((_, g)) => {
                self.layers.iter().position(|l| l.trains(g)).unwrap_or(self.layers.len())
            }
        };
        let mut traces = Vec::new();
        let mut x = self.embed(s, b);
        for (i, layer) in self.layers.iter().enumerate() {
            let (out, kept) = layer.forward(s, x, b);
            x = out;
            if i < lowest {
                kept.release(b);
            } else if self.recompute {
                let mut kept = kept;
                traces.push(Trace::Input(std::mem::take(&mut kept.x)));
                kept.release(b);
            } else {
                traces.push(Trace::Whole(Box::new(kept)));
            }
        }
        let (mut y, mut inverse) = (b.take(x.len()), b.take(s.tokens()));
        let w = s.weights.values(self.norm);
        norm::forward(&x, w, self.design.epsilon, &mut y, &mut inverse);
        let Some((share, gradients)) = wanted else {
            let loss = self.head.loss(s.weights, s.batch, &y, None, b);
            [x, y, inverse].into_iter().for_each(|v| b.give(v));
            return loss;
        };
        let goes_on = !traces.is_empty() || gradients.wants(self.embedding);
        let mut dy = b.take(if goes_on || gradients.wants(self.norm) { y.len() } else { 0 });
        let head =
            Wanted { gradients, share, dy: Some(dy.as_mut_slice()).filter(|d| !d.is_empty()) };
        let loss = self.head.loss(s.weights, s.batch, &y, Some(head), b);
        if let Some(dw) = gradients.get(self.norm) {
            norm::backward_weight(&x, &inverse, &dy, dw);
        }
        if goes_on {
            let mut dx = y;
            dx.fill(0.0);
            norm::backward_input(&x, w, &inverse, &dy, &mut dx);
            [x, dy, inverse].into_iter().for_each(|v| b.give(v));
            self.backward(s, lowest, traces, dx, gradients, b);
        } else {
            [x, y, dy, inverse].into_iter().for_each(|v| b.give(v));
        }
        loss
    }

    /// From the gradient of the last layer's output down to the lowest layer, and into the embedding.
    fn backward(
        &self,
        s: Scene,
        lowest: usize,
        mut traces: Vec<Trace>,
        dx: Vec<f32>,
        gradients: &mut Gradients,
        b: &mut Buffers,
    ) {
        let wants_embedding = gradients.wants(self.embedding);
        let mut dx = Some(dx);
        for (i, layer) in self.layers.iter().enumerate().skip(lowest).rev() {
            let (Some(trace), Some(d)) = (traces.pop(), dx.take()) else {
                return;
            };
            let kept = match trace {
                Trace::Whole(kept) => *kept,
                Trace::Input(x) => {
                    let (out, kept) = layer.forward(s, x, b);
                    b.give(out);
                    kept
                }
            };
            dx = layer.backward(s, kept, d, i > lowest || wants_embedding, gradients, b);
        }
        let Some(dx) = dx else {
            return;
        };
        if let Some(table) = gradients.get(self.embedding) {
            let h = self.design.hidden;
            for (id, d) in s.batch.ids.iter().zip(dx.chunks(h)) {
                let row = *id as usize * h;
                add(&mut table[row..row + h], d);
            }
        }
        b.give(dx);
    }

    /// The embedding's rows of the batch's tokens: `[tokens, hidden]`.
    fn embed(&self, s: Scene, b: &mut Buffers) -> Vec<f32> {
        let h = self.design.hidden;
        let table = s.weights.values(self.embedding);
        let mut x = b.take(s.tokens() * h);
        for (id, row) in s.batch.ids.iter().zip(x.chunks_mut(h)) {
            let from = *id as usize * h;
            row.copy_from_slice(&table[from..from + h]);
        }
        x
    }
}

/// `a += b`, shared among the threads.
pub(super) fn add_all(a: &mut [f32], b: &[f32]) {
    a.par_chunks_mut(BLOCK).zip(b.par_chunks(BLOCK)).for_each(|(a, b)| {
        wide(
            #[inline(always)]
            || add(a, b),
        );
    });
}

#[cfg(test)]
mod tests {
    use super::super::design::{Family, RopeScaling};
    use super::super::testing::numbers;
    use super::*;

    /// One small design of each kind.
    fn designs() -> Vec<Design> {
        let llama = Design::sample();
        let scaling = RopeScaling::Llama3 { factor: 4.0, low: 1.0, high: 4.0, original: 16.0 };
        vec![
            Design {
                scaling,
                output_bias: true,
                qkv_bias: true,
                inner_bias: true,
                ..llama.clone()
            },
            Design { family: Family::Mistral, key_heads: 1, ..llama.clone() },
            Design { family: Family::Qwen2, tied: true, qkv_bias: true, ..llama.clone() },
            Design { family: Family::Qwen3, head_dim: 6, key_heads: 4, ..llama },
        ]
    }

    /// Documents of a vocabulary of 11, one of them of one token.
    fn documents() -> Vec<Vec<u32>> {
        let lengths = [7, 1, 4, 12];
        lengths.iter().map(|n| (0..*n).map(|i| (i * i * 3 + n) % 11).collect()).collect()
    }

    fn batch(documents: &[Vec<u32>]) -> Batch {
        let mut batch = Batch::default();
        documents.iter().for_each(|d| batch.push(d, &vec![true; d.len()]));
        batch
    }

    fn network(design: &Design, weights: &Weights, recompute: bool) -> Network {
        Network::new(design.clone(), weights, 16, recompute).unwrap()
    }

    fn gradients(design: &Design, weights: &Weights, recompute: bool) -> Vec<Vec<f32>> {
        let mut gradients = Gradients::zeros(weights);
        let batch = batch(&documents());
        network(design, weights, recompute).step(weights, &batch, 0.05, &mut gradients);
        gradients.iter().map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn the_gradient_of_every_tensor_agrees_with_differences() {
        let batch = batch(&documents());
        for design in designs() {
            let weights = design.random_weights();
            let all = gradients(&design, &weights, false);
            let mut network = network(&design, &weights, false);
            for (place, gradient) in all.iter().enumerate() {
                let direction = numbers(gradient.len(), 77);
                let mut value = |sign: f32| {
                    let mut moved = weights.clone();
                    let tensor = moved.iter_mut().nth(place).unwrap();
                    let step = 0.02 / (gradient.len() as f32).sqrt();
                    for (w, d) in tensor.values.iter_mut().zip(&direction) {
                        *w += sign * step * d;
                    }
                    (0.05 * network.loss(&moved, &batch), step)
                };
                let ((up, step), (down, _)) = (value(1.0), value(-1.0));
                let measured = (up - down) / 2.0 / f64::from(step);
                let slope: f32 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let size = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
                let name = &weights.at(place).name;
                assert!(size > 1e-5, "{name} of {:?} has no gradient", design.family);
                let error = (measured - f64::from(slope)).abs();
                let bound = 5e-3 * f64::from(size) + 3e-5;
                assert!(error < bound, "{name} of {:?}: {measured} and {slope}", design.family);
            }
        }
    }

    #[test]
    fn recomputing_gives_the_same_bits() {
        for design in designs() {
            let weights = design.random_weights();
            assert_eq!(gradients(&design, &weights, false), gradients(&design, &weights, true));
        }
    }

    #[test]
    fn what_is_frozen_changes_no_other_gradient() {
        for design in designs() {
            let mut weights = design.random_weights();
            let all = gradients(&design, &weights, false);
            for place in 0..all.len() {
                for (i, weight) in weights.iter_mut().enumerate() {
                    weight.trainable = i == place;
                }
                let alone = gradients(&design, &weights, false);
                assert_eq!(alone[place], all[place], "{}", weights.at(place).name);
                assert!(alone.iter().enumerate().all(|(i, g)| i == place || g.is_empty()));
            }
        }
    }

    #[test]
    fn packed_documents_lose_what_they_lose_alone() {
        for design in designs() {
            let weights = design.random_weights();
            let mut network = network(&design, &weights, false);
            let packed = network.loss(&weights, &batch(&documents()));
            let alone: f64 = documents()
                .iter()
                .map(|d| network.loss(&weights, &batch(std::slice::from_ref(d))))
                .sum();
            assert!((packed - alone).abs() < 1e-5 * packed, "{packed} {alone}");
        }
    }
}
