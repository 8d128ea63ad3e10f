//! The escape sequences of cu(1) in console input: `~.` at the beginning of a line detaches, `~~` sends one `~`.

/// Where in a line of input the next byte is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The beginning of a line.
    #[default]
    LineStart,
    /// After a `~` at the beginning of a line, which has not been sent.
    Tilde,
    /// Elsewhere.
    Line,
}

/// A filter that recognises the escape sequences.
#[derive(Debug, Default)]
pub struct Escape {
    at: At,
}

impl Escape {
    /// Appends the input to send to `out`. Returns true on `~.`; the input after it is dropped.
    pub fn typed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            let after = |byte| if matches!(byte, b'\r' | b'\n') { At::LineStart } else { At::Line };
            self.at = match (self.at, byte) {
                (At::LineStart, b'~') => At::Tilde,
                (At::Tilde, b'.') => return true,
                (At::Tilde, b'~') => {
                    out.push(b'~');
                    At::Line
                }
                (At::Tilde, _) => {
                    out.extend([b'~', byte]);
                    after(byte)
                }
                (At::LineStart | At::Line, _) => {
                    out.push(byte);
                    after(byte)
                }
            };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let leave = Escape::default().typed(typed, &mut out);
        (out, leave)
    }

    #[test]
    fn as_in_cu() {
        assert_eq!(sent(b"~."), (vec![], true));
        assert_eq!(sent(b"ls\r~.more"), (b"ls\r".to_vec(), true));
        assert_eq!(sent(b"ls\n~."), (b"ls\n".to_vec(), true));
        assert_eq!(sent(b"~~."), (b"~.".to_vec(), false));
        assert_eq!(sent(b"cd ~.ssh\r"), (b"cd ~.ssh\r".to_vec(), false));
        assert_eq!(sent(b"~user\r"), (b"~user\r".to_vec(), false));
        assert_eq!(sent(b"~\r~."), (b"~\r".to_vec(), true));
        assert_eq!(sent(b"~"), (vec![], false));
    }

    proptest! {
        /// Keystrokes may come one by one or in one piece.
        #[test]
        fn pieces_do_not_matter(typed in "[~.a\r\n]{0,12}") {
            let whole = sent(typed.as_bytes());
            let (mut escape, mut out, mut leave) = (Escape::default(), Vec::new(), false);
            for byte in typed.bytes() {
                if escape.typed(&[byte], &mut out) {
                    leave = true;
                    break;
                }
            }
            prop_assert_eq!((out, leave), whole);
        }

        #[test]
        fn without_a_tilde_nothing_changes(typed in "[^~]*") {
            prop_assert_eq!(sent(typed.as_bytes()), (typed.clone().into_bytes(), false));
        }
    }
}
