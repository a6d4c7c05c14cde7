//! selector
/// x
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorProblem {
    /// x
    #[error("x")]
    X,
}
impl SelectorProblem {
    pub(crate) fn hint(&self) -> Option<String> {
        None
    }
}
