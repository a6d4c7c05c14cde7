//! `--device`: from what was asked for to what computes, and why.

use std::fmt;
use std::str::FromStr;

use super::failure::{Failure, Origins};
use super::session::Session;
use super::units::size;
use crate::engine::{Auto, Device, Execution, Simd};
use crate::error::{Error, Result};
use crate::plan::{Numerics, Plan};

/// What `auto` computes on the CPU without asking for a GPU. Starting one takes about a second of a core: 5 % of what this
/// takes two cores.
const WORTH_A_GPU: u64 = 16 << 30;

/// Tile for GPUs: large enough that calls of the driver cost little beside its copies.
const TILE_OF_GPU: u64 = 4 << 20;

/// What computes, as asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    /// These GPUs; all if none is named.
    Cuda(Vec<u32>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || "devices are `auto`, `cpu`, `cuda`, `cuda:0` and `cuda:0,1`".to_owned();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(Vec::new())),
            _ => {
                let numbers = text.strip_prefix("cuda:").ok_or_else(wrong)?.split(',');
                let numbers: std::result::Result<_, _> = numbers.map(str::parse).collect();
                numbers.map(Self::Cuda).map_err(|_| wrong())
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(numbers) if numbers.is_empty() => f.write_str("cuda"),
            Self::Cuda(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
        }
    }
}

impl DeviceChoice {
    /// Bytes of the result worked on at once by a thread, unless the user says.
    pub(super) fn tile(&self) -> u64 {
        match self {
            Self::Cuda(_) => TILE_OF_GPU,
            Self::Auto | Self::Cpu => Execution::TILE,
        }
    }

    /// Tells of a device that cannot be had before anything else is done. `memory` is a bound on that of GPUs.
    pub(super) fn check(&self, memory: Option<u64>) -> Result<(), Failure> {
        match (self, memory) {
            (Self::Cuda(_), _) => self.names().map(drop),
            (Self::Cpu, Some(_)) => Err(Failure::usage(
                "`--device-memory` bounds what is taken of GPUs, and `--device cpu` uses none",
                "leave one of them out",
            )),
            (Self::Auto | Self::Cpu, _) => Ok(()),
        }
    }

    /// What will compute the plan, as far as that is known before.
    pub(super) fn foresee(&self, plan: &Plan) -> Result<String, Failure> {
        self.suits(plan)?;
        Ok(match self {
            Self::Cuda(_) => self.names()?.join(", "),
            Self::Auto if plan.cost().computed >= WORTH_A_GPU && is_precise(plan) => {
                format!("{}, or GPUs if they prove faster", Simd::new().name())
            }
            Self::Auto | Self::Cpu => Simd::new().name(),
        })
    }

    /// The GPUs that are meant; none unless GPUs are asked for.
    fn names(&self) -> Result<Vec<String>, Failure> {
        match self {
            Self::Cuda(numbers) => present(numbers).map_err(|error| self.explain(error)),
            Self::Auto | Self::Cpu => Ok(Vec::new()),
        }
    }

    /// Refuses GPUs for what they cannot compute.
    fn suits(&self, plan: &Plan) -> Result<(), Failure> {
        if matches!(self, Self::Cuda(_)) && !is_precise(plan) {
            return Err(Failure::usage(
                "mergekit's arithmetic is carried out on the CPU alone",
                "leave `--device` out, or use `--numerics precise`",
            ));
        }
        Ok(())
    }

    /// Starts what computes the plan, on as many lanes as there are threads.
    pub(super) fn open(
        &self,
        plan: &Plan,
        memory: Option<u64>,
        lanes: usize,
    ) -> Result<Chosen, Failure> {
        self.suits(plan)?;
        let computed = plan.cost().computed;
        match self {
            Self::Auto if !is_precise(plan) => {
                Ok(Chosen::cpu("mergekit's arithmetic is carried out on the CPU alone"))
            }
            Self::Cpu => Ok(Chosen::cpu("asked for")),
            Self::Cuda(numbers) => {
                let device = start(numbers, memory, lanes).map_err(|error| self.explain(error))?;
                Ok(Chosen { device, reason: "asked for".into() })
            }
            Self::Auto if computed == 0 => Ok(Chosen::cpu("nothing is computed")),
            Self::Auto if computed < WORTH_A_GPU => Ok(Chosen::cpu(format!(
                "{} to compute take less time than a GPU takes to start",
                size(computed)
            ))),
            Self::Auto => Ok(Chosen {
                device: Box::new(Auto::new(lanes, move || start(&[], memory, lanes))),
                reason: String::new(),
            }),
        }
    }

    fn explain(&self, error: Error) -> Failure {
        let mut origins = Origins::default();
        origins.flag("--device", self.to_string());
        let error = match error {
            Error::Device { reason, hint, .. } => {
                let hint = if hint.contains("--device") {
                    hint
                } else {
                    format!("{hint}; `--device cpu` works without")
                };
                Error::Device { device: self.to_string(), reason, hint }
            }
            error => error,
        };
        origins.explain(error.into())
    }
}

fn is_precise(plan: &Plan) -> bool {
    plan.numerics == Numerics::Precise
}

/// What computes.
pub(super) struct Chosen {
    pub(super) device: Box<dyn Device>,
    reason: String,
}

impl Chosen {
    fn cpu(reason: impl Into<String>) -> Self {
        Self { device: Box::new(Simd::new()), reason: reason.into() }
    }

    /// Why it is this device, known in full after the run.
    pub(super) fn reason(&self) -> String {
        match self.device.as_auto() {
            Some(auto) => auto.verdict().reason.unwrap_or_else(|| {
                "the run ended before a GPU had been started and compared".to_owned()
            }),
            None => self.reason.clone(),
        }
    }

    /// Tells what computed, and why; aloud if a GPU took part in it or failed to.
    pub(super) fn tell(&self, session: &Session) {
        let line = format!("device: {}: {}", self.device.name(), self.reason());
        let auto = self.device.as_auto().map(Auto::verdict);
        match auto {
            Some(verdict) if verdict.failed && is_installed() => session.warn(&line),
            Some(verdict) if verdict.reason.is_some() && !verdict.failed => session.note(&line),
            _ => session.detail(&line),
        }
    }
}

#[cfg(feature = "cuda")]
mod with_cuda {
    use crate::engine::Device;
    use crate::engine::cuda::{self, Cuda, CudaOptions};
    use crate::error::Result;

    pub(super) fn present(numbers: &[u32]) -> Result<Vec<String>> {
        Ok(cuda::check(numbers)?.iter().map(ToString::to_string).collect())
    }

    pub(super) fn start(
        numbers: &[u32],
        memory: Option<u64>,
        lanes: usize,
    ) -> Result<Box<dyn Device>> {
        let options = CudaOptions { gpus: numbers.to_vec(), memory, lanes };
        Ok(Box::new(Cuda::new(&options)?))
    }

    pub(super) fn is_installed() -> bool {
        cuda::is_installed()
    }
}

#[cfg(not(feature = "cuda"))]
mod with_cuda {
    use crate::engine::Device;
    use crate::error::{Error, Result};

    fn not_built<T>() -> Result<T> {
        Err(Error::Device {
            device: "cuda".into(),
            reason: "this build has no CUDA support".into(),
            hint: "build it with the cargo feature `cuda`".into(),
        })
    }

    pub(super) fn present(_: &[u32]) -> Result<Vec<String>> {
        not_built()
    }

    pub(super) fn start(_: &[u32], _: Option<u64>, _: usize) -> Result<Box<dyn Device>> {
        not_built()
    }

    pub(super) fn is_installed() -> bool {
        false
    }
}

use with_cuda::{is_installed, present, start};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mergekits_arithmetic_is_not_for_gpus() {
        let plan = |numerics: &str| -> Plan {
            let operation = json!({"verb": "merge", "parameters": {}});
            let none: [(); 0] = [];
            let plan = json!({
                "version": 1, "operation": operation, "sources": none, "tensors": none, "shards": none,
                "sidecars": none, "numerics": numerics, "parents": none, "notes": none,
            });
            serde_json::from_value(plan).unwrap()
        };
        let (cuda, cpu) = (DeviceChoice::Cuda(Vec::new()), DeviceChoice::Cpu);
        assert!(cuda.suits(&plan("mergekit")).is_err());
        assert!(cuda.suits(&plan("precise")).is_ok());
        assert!(cpu.suits(&plan("mergekit")).is_ok());
    }
}
