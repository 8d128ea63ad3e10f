//! The kernel patches: one stack of patch files for all kernel series.
//!
//! `kernel/patches/stack.toml` orders the patches in groups and names, with reasons, where a series deviates. [`Stack`]
//! reads it, [`PatchFile`] one patch.

mod check;
mod error;
mod export;
mod git;
mod kbuild;
mod objects;
mod patch;
mod rebase;
mod released;
mod stack;

pub use crate::{
    check::{Check, Compile, Finding, Kind, PatchReport, Report, check},
    error::{BoxedError, Error, Problem, Result},
    export::{Export, Exported, Identity, export},
    kbuild::Toolchain,
    patch::{Change, Hunk, PatchFile},
    rebase::{Carried, Conflict, Outcome, Rebase, Refresh, Refreshed, Survey, rebase, refresh},
    released::{CONTEXT, Lay, Overlay, Release},
    stack::{COVER_FILE, Group, OVERLAY_FILE, Patch, STACK_FILE, Stack},
};
