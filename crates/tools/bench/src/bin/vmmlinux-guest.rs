//! The init of the guests that `vmmlinux bench` runs.

fn main() {
    bench::guest::main();
}
