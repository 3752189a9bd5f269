//! Quoting for a POSIX shell: the only place where a value becomes shell text.

/// Quotes `value` so that `sh` reads it as exactly one word.
///
/// Single quotes protect everything but themselves (POSIX.1-2017, XCU 2.2.2). NUL cannot be carried by any shell and is
/// dropped by callers' validation before it gets here; it is replaced to keep the function total.
pub fn quote(value: &str) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b':' | b'@' | b'-' | b'+' | b',');
    if !value.is_empty() && value.bytes().all(safe) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\0', "\u{fffd}").replace('\'', r"'\''"))
}

/// Joins words into one command line that `sh` splits back into the same words.
pub fn join<I>(words: I) -> String
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    words.into_iter().map(|w| quote(w.as_ref())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_stay_readable() {
        assert_eq!(quote("/opt/roadie/api"), "/opt/roadie/api");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("~"), "'~'");
        assert_eq!(quote("$(reboot)\n"), "'$(reboot)\n'");
    }
}
