//! Standard output and standard error that tolerate a closed pipe: `vmmlinux config list | head`.
//!
//! The standard library's macros panic on a closed pipe, so the workspace's lints forbid them. With these functions a
//! program whose reader has exited continues silently and ends with its usual exit status.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

/// Standard output cannot be written to, for example because a disk is full.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("cannot write to standard output")]
#[diagnostic(help("if it is redirected to a file, check that the disk has free space"))]
pub struct Error(#[from] io::Error);

/// Writes a text to standard output and flushes it. A closed pipe is not an error.
pub fn print(text: &str) -> Result<(), Error> {
    write(&mut io::stdout().lock(), text.as_bytes())
}

/// Writes bytes to a writer in front of standard output and flushes it. A closed pipe is not an error.
pub fn write(output: &mut impl Write, bytes: &[u8]) -> Result<(), Error> {
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, formatted as by [`format!`]. Failures are ignored.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => {
        $crate::note_line(::std::format_args!($($text)*))
    };
}

/// Implementation of [`note!`].
#[doc(hidden)]
pub fn note_line(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_ignored_and_a_full_disk_is_an_error() {
        write(&mut Failing(ErrorKind::BrokenPipe), b"text").unwrap();
        let error = write(&mut Failing(ErrorKind::StorageFull), b"text").unwrap_err();
        assert_eq!(error.to_string(), "cannot write to standard output");
    }

    #[test]
    fn buffered_output_is_flushed() {
        let mut line = io::LineWriter::new(Vec::new());
        write(&mut line, b"no newline").unwrap();
        assert_eq!(line.get_ref(), b"no newline");
    }
}
