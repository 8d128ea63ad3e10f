//! The kernel configuration as data with reasons.
//!
//! [`Fragments`] are the TOML files of `kernel/config/`: every requested symbol with its value, why it is
//! wanted, and for which kernel series, host generations and workloads. [`resolve`] lets the kernel's own
//! `make` turn a [`Selection`] of them into a `.config` and then verifies that every request came true.
//! [`Given`] completes a given configuration, for comparison.
//! [`Tree`] reads a kernel's Kconfig files to say *why* a symbol has the value it has; it evaluates
//! expressions over values that the kernel's `conf` has computed, and never solves anything itself.
//! [`Backends`] finds what built files ask for by name at run time and what nothing that is built offers.

mod asks;
mod audit;
mod backends;
mod conf;
mod diff;
mod dotconfig;
mod explain;
mod expr;
mod fragments;
mod given;
mod objects;
mod reader;
mod resolve;
mod resolve_error;
mod selection;
mod tree;
mod value;

pub use audit::{Audit, Class, Finding, Rules, RulesError, Severity};
pub use backends::{Backends, MissingBackend};
pub use diff::{Difference, Values, diff};
pub use dotconfig::{DotConfig, DotConfigError};
pub use explain::{Explanation, Follows, explain};
pub use expr::{Expr, Operator, Tristate};
pub use fragments::{FragmentError, Fragments, Origin, Place, Request, Requests};
pub use given::{BASES, Completed, Given, GivenError};
pub use resolve::{Resolve, Resolved, resolve, unknown, verify};
pub use resolve_error::{Mismatch, ResolveError};
pub use selection::{ParseSelectionError, Selection, UnknownWorkload, Workload};
pub use tree::{Definition, Kind, Location, Symbol, Tree, TreeError};
pub use value::Value;
pub use vmd_release::Generation as Host;
