//! A job for the helper VM: says what KVM it found there, then sends back in capitals what comes from the terminal.

#![expect(clippy::print_stderr, reason = "an example needs no more")]

use std::{
    io::{self, Read, Write},
    thread,
    time::Duration,
};

use helper_vm::{Launch, init};

fn main() -> miette::Result<()> {
    if init::is_init() {
        init::run(inside);
    }
    outside()
}

/// In the helper VM.
fn inside(mut env: init::Env) {
    let kvm = kvm_ioctls::Kvm::new()
        .and_then(|kvm| kvm.create_vm()?.create_vcpu(0)?.get_sregs().map(|_| kvm.get_api_version()));
    let said = match kvm {
        Ok(version) => writeln!(env.console, "{}: KVM {version}, with a vCPU", env.job["greeting"]),
        Err(error) => writeln!(env.console, "no KVM: {error}"),
    };
    let mut bytes = [0; 4096];
    while said.is_ok() {
        match env.console.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(n) if bytes[..n].contains(&b'.') => break,
            Ok(n) => drop(env.console.write_all(&bytes[..n].to_ascii_uppercase())),
        }
    }
}

/// On the host.
fn outside() -> miette::Result<()> {
    let mut l1 =
        Launch::new(64).start(&serde_json::json!({ "greeting": "hello" }), &|what| eprintln!("{what}"))?;
    eprintln!("up after {:?}", l1.start_time());
    let (mut to, mut from) = (l1.console(), l1.console());
    thread::scope(|scope| {
        scope.spawn(move || io::copy(&mut io::stdin(), &mut to));
        let _ = io::copy(&mut from, &mut io::stdout());
    });
    eprintln!("{}", l1.power_off(Duration::from_secs(10))?);
    Ok(())
}
