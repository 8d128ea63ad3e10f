//! The control protocol of a running machine.
