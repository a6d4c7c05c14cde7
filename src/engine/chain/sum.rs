//! The order in which PyTorch adds up a tensor on one thread of the CPU.
//!
//! A register holds 8 f32 (4 f64); a register's worth of bf16 or f16 is 16, whose halves are added first. Four registers
//! are filled in turn, so that element `i` goes to lane `i mod 8` of register `(i / 8) mod 4`. Each of these adds up through
//! four levels: after every `2^p` rows, `p = max(4, ceil(log2 rows) / 4)`, the level below is added to the one above and starts
//! anew. At the end levels are added up, then the registers, with rows that did not fill all four in the first; the last
//! elements that did not fill a register come first, then the lanes.

use super::grid::Grid;

const LEVELS: usize = 4;
const REGISTERS: usize = 4;

/// The most lanes of a register.
const LANES: usize = 8;

type Register = [f64; LANES];

/// The sum of `count` values, as PyTorch makes it for a contiguous tensor of this type, before it is rounded to that.
pub(super) fn sum(grid: Grid, count: usize, value: impl Fn(usize) -> f64) -> f64 {
    let adder = Adder { wide: grid.wide(), lanes: if grid == Grid::F64 { 4 } else { LANES } };
    let halves = if matches!(grid, Grid::F16 | Grid::BF16) { 2 } else { 1 };
    let width = adder.lanes * halves;
    let rows = count / width;
    let load = |row: usize| {
        let mut register = [0.0; LANES];
        for (lane, sum) in register[..adder.lanes].iter_mut().enumerate() {
            let first = value(row * width + lane);
            *sum = match halves {
                1 => first,
                _ => adder.add(first, value(row * width + adder.lanes + lane)),
            };
        }
        register
    };
    let lanes = adder.rows(rows, load);
    let last = (rows * width..count).fold(0.0, |sum, i| adder.add(sum, value(i)));
    lanes[..adder.lanes].iter().fold(last, |sum, lane| adder.add(sum, *lane))
}

#[derive(Clone, Copy)]
struct Adder {
    wide: Grid,
    lanes: usize,
}

impl Adder {
    fn add(self, a: f64, b: f64) -> f64 {
        self.wide.round(a + b)
    }

    fn add_to(self, sum: &mut Register, more: &Register) {
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum = self.add(*sum, *more);
        }
    }

    /// The sum of so many registers' worth.
    fn rows(self, rows: usize, load: impl Fn(usize) -> Register) -> Register {
        let full = rows / REGISTERS;
        let mut sums = self.levels(full, &load);
        for row in full * REGISTERS..rows {
            self.add_to(&mut sums[0], &load(row));
        }
        let [mut sum, rest @ ..] = sums;
        for register in &rest {
            self.add_to(&mut sum, register);
        }
        sum
    }

    /// The sums of the four registers over `steps` rows each.
    fn levels(self, steps: usize, load: &impl Fn(usize) -> Register) -> [Register; REGISTERS] {
        let power = (steps.next_power_of_two().ilog2() / 4).max(4);
        let mask = (1_usize << power) - 1;
        let mut sums = [[[0.0; LANES]; REGISTERS]; LEVELS];
        for step in 0..steps {
            for (register, sum) in sums[0].iter_mut().enumerate() {
                self.add_to(sum, &load(step * REGISTERS + register));
            }
            // Carries happen after whole runs; what is left of the last one stays on its level.
            let mut runs = step + 1;
            for level in 1..LEVELS {
                if runs & mask != 0 {
                    break;
                }
                runs >>= power;
                self.carry(&mut sums, level);
            }
        }
        for level in 1..LEVELS {
            let above = sums[level];
            for (sum, more) in sums[0].iter_mut().zip(&above) {
                self.add_to(sum, more);
            }
        }
        sums[0]
    }

    fn carry(self, sums: &mut [[Register; REGISTERS]; LEVELS], level: usize) {
        let below = std::mem::take(&mut sums[level - 1]);
        for (sum, more) in sums[level].iter_mut().zip(&below) {
            self.add_to(sum, more);
        }
    }
}
