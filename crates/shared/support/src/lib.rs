//! Standard output and standard error, whose readers may leave: `vmmlinux config list | head`.
//!
//! The standard library's macros panic then, so the workspace's lints forbid them. With these a program that nobody reads goes on
//! to its end in silence, with the exit status that it would have had; `vmmlinux run`, which might have no end, ends its guest.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

/// Standard output cannot be written to, and somebody may be waiting for it: a disk is full.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("cannot write to standard output")]
#[diagnostic(help("if it goes to a file, look whether there is space left"))]
pub struct Error(#[from] io::Error);

/// Writes a text to standard output, to the last byte. That nobody reads it any more is no failure.
pub fn print(text: &str) -> Result<(), Error> {
    write(&mut io::stdout().lock(), text.as_bytes())
}

/// The same to what leads to standard output.
pub fn write(output: &mut impl Write, bytes: &[u8]) -> Result<(), Error> {
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, formatted as by [`format!`]. If that fails, there is nowhere to say so.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => {
        $crate::note_line(::std::format_args!($($text)*))
    };
}

/// What [`note!`] does.
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
    fn a_reader_that_left_is_no_failure_and_a_full_disk_is_one() {
        write(&mut Failing(ErrorKind::BrokenPipe), b"text").unwrap();
        let error = write(&mut Failing(ErrorKind::StorageFull), b"text").unwrap_err();
        assert_eq!(error.to_string(), "cannot write to standard output");
    }

    #[test]
    fn what_is_held_back_is_written_too() {
        let mut line = io::LineWriter::new(Vec::new());
        write(&mut line, b"no newline").unwrap();
        assert_eq!(line.get_ref(), b"no newline");
    }
}
