//! Sources: which release of a series, from where, verified and unpacked.

mod debian;
pub(crate) mod error;
mod kernel_org;
pub(crate) mod lock;
pub(crate) mod select;
pub(crate) mod series;
pub(crate) mod signature;
pub(crate) mod sources;
pub(crate) mod unpack;
