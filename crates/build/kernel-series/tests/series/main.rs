//! Tests of the stack's reader, check, rebase and export, on a kernel small enough to be made up.

mod check;
mod export;
mod fixture;
mod rebase;
mod stack;
