//! JSON messages on a stream, one per line, with a maximum length that bounds the memory a peer can make us use.

use std::io::{self, BufRead, BufReader, Read, Write};

use serde::Serialize;

/// Maximum length of a line on a control socket, in bytes.
pub(crate) const MAX_LINE: usize = 64 << 10;

/// The result of reading a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line without its newline.
    Whole(Vec<u8>),
    /// The line exceeds the maximum length; the stream cannot be read further.
    TooLong,
    /// The stream has ended, possibly within a line.
    End,
}

/// Reads lines of limited length.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    from: BufReader<R>,
    max: usize,
}

impl<R: Read> LineReader<R> {
    pub(crate) fn new(from: R, max: usize) -> Self {
        Self { from: BufReader::new(from), max }
    }

    pub(crate) fn next(&mut self) -> io::Result<Line> {
        let mut line = Vec::new();
        (&mut self.from).take(self.max as u64 + 1).read_until(b'\n', &mut line)?;
        Ok(match line.pop() {
            Some(b'\n') => Line::Whole(line),
            Some(_) if line.len() >= self.max => Line::TooLong,
            _ => Line::End,
        })
    }

    /// The stream, and the bytes that were read from it and not yet returned.
    pub(crate) fn into_parts(self) -> (R, Vec<u8>) {
        let rest = self.from.buffer().to_vec();
        (self.from.into_inner(), rest)
    }
}

/// Writes a message as one line, with one write.
pub(crate) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_end_at_newlines_and_at_the_limit() {
        let mut lines = LineReader::new(&b"abcd\n\nabcde\nx"[..], 4);
        assert_eq!(lines.next().unwrap(), Line::Whole(b"abcd".to_vec()));
        assert_eq!(lines.next().unwrap(), Line::Whole(vec![]));
        assert_eq!(lines.next().unwrap(), Line::TooLong);
        let mut cut = LineReader::new(&b"abc"[..], 4);
        assert_eq!(cut.next().unwrap(), Line::End);
    }

    #[test]
    fn what_follows_a_line_is_not_lost() {
        let mut lines = LineReader::new(&b"a\nbytes"[..], 4);
        lines.next().unwrap();
        assert_eq!(lines.into_parts().1, b"bytes");
    }

    proptest! {
        #[test]
        fn no_input_yields_a_line_over_the_limit(input: Vec<u8>) {
            let mut lines = LineReader::new(&*input, 8);
            while let Line::Whole(line) = lines.next().unwrap() {
                prop_assert!(line.len() <= 8);
            }
        }
    }
}
