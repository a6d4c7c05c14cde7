//! config
/// Why `config.json` cannot be used or cannot express a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// x
    #[error("x")]
    X,
}
impl ConfigProblem {
    pub(crate) fn hint(&self) -> Option<String> {
        None
    }
}
