//! Values as their readers take them for data.

use std::fmt::Write as _;

use super::Unfit;

/// `bufio.MaxScanTokenSize` of Go, with which docker reads lines, less the end of the line.
const MAX_DOCKER_LINE: usize = 64 * 1024 - 2;
/// The longest line that `cmd.exe` takes (learn.microsoft.com, "Command prompt line string
/// limitation").
const MAX_CMD_LINE: usize = 8191;
/// The most characters of a variable of Windows (`SetEnvironmentVariable`), with its NUL.
const MAX_WINDOWS_VALUE: usize = 32_766;

/// Single quotes, in which nothing has a meaning but their end (POSIX.1-2024 XCU 2.2.2): a quote is
/// written behind them, with a backslash.
pub(super) fn sh(value: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in value {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');

    quoted
}

/// All to the end of the line is the value. Docker takes a CR before the LF away, and refuses files
/// with other bytes than UTF-8.
pub(super) fn docker(name: &str, value: &str) -> Result<String, Unfit> {
    if value.contains('\n') || value.ends_with('\r') {
        return Err(Unfit::LineBreak);
    }
    let line = format!("{name}={value}");
    if line.len() > MAX_DOCKER_LINE {
        return Err(Unfit::TooLong);
    }

    Ok(line)
}

/// Single quotes, in which values are literal, where their reader has no other use for a character;
/// otherwise double quotes with backslashes, and `$$` for a `$`.
pub(super) fn compose(value: &str) -> String {
    let is_literal = !value.contains(['\'', '\n', '\r']) && !value.ends_with('\\');
    if is_literal {
        return format!("'{value}'");
    }
    let mut quoted = String::from('"');
    for c in value.chars() {
        match c {
            '\\' => quoted.push_str(r"\\"),
            '"' => quoted.push_str(r#"\""#),
            '$' => quoted.push_str("$$"),
            '\n' => quoted.push_str(r"\n"),
            '\r' => quoted.push_str(r"\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');

    quoted
}

/// Single quotes. csh substitutes history in them, and with `set backslash_quote` knows backslashes
/// in them: quotes, `!` and backslashes are therefore written outside of them, each behind a
/// backslash, which has one meaning in both modes. A line break needs a backslash in them.
pub(super) fn csh(value: &str) -> Result<String, Unfit> {
    let mut quoted = String::from('\'');
    for c in value.chars() {
        match c {
            '\'' | '!' | '\\' => {
                quoted.push_str(r"'\");
                quoted.push(c);
                quoted.push('\'');
            }
            '\n' => quoted.push_str("\\\n"),
            '\r' => return Err(Unfit::Character(c)),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');

    Ok(quoted)
}

/// `set "NAME=VALUE"` with its quotes behind carets: so no quote in the value ends or begins
/// quoting, and every character that has a meaning outside of quotes has a caret. `set` takes all
/// up to the last quote. A `%` of a batch file is doubled. cmd.exe reads batch files in the code
/// page of the console, so that only ASCII is the same for all.
pub(super) fn cmd(name: &str, value: &str) -> Result<String, Unfit> {
    if value.is_empty() {
        return Err(Unfit::Empty);
    }
    let mut line = format!("@set ^\"{name}=");
    for c in value.chars() {
        match c {
            '\n' | '\r' => return Err(Unfit::LineBreak),
            '&' | '|' | '<' | '>' | '^' | '"' | '(' | ')' => {
                line.push('^');
                line.push(c);
            }
            '%' => line.push_str("%%"),
            ' '..='~' | '\t' => line.push(c),
            other => return Err(Unfit::Character(other)),
        }
    }
    line.push_str("^\"");
    if line.len() > MAX_CMD_LINE {
        return Err(Unfit::TooLong);
    }

    Ok(line)
}

/// RFC 8259 section 7.
pub(super) fn json(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str(r#"\""#),
            '\\' => quoted.push_str(r"\\"),
            '\n' => quoted.push_str(r"\n"),
            '\r' => quoted.push_str(r"\r"),
            '\t' => quoted.push_str(r"\t"),
            c if c.is_control() => escape_utf16(&mut quoted, c, "\\u", ""),
            other => quoted.push(other),
        }
    }
    quoted.push('"');

    quoted
}

/// Single quotes, in which a quote is written twice. Windows PowerShell reads a file without a mark
/// in the code page of Windows, in which bytes of UTF-8 are quotes too (about_Quoting_Rules: also
/// typographic ones quote): so everything but ASCII is the number of its character.
pub(super) fn ps(value: &str) -> Result<String, Unfit> {
    if value.is_empty() {
        return Err(Unfit::Empty);
    }
    if value.encode_utf16().count() > MAX_WINDOWS_VALUE {
        return Err(Unfit::TooLong);
    }
    let mut quoted = String::from('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            ' '..='~' => quoted.push(c),
            other => {
                quoted.push('\'');
                escape_utf16(&mut quoted, other, " + [char]0x", "");
                quoted.push_str(" + '");
            }
        }
    }
    quoted.push('\'');

    Ok(quoted)
}

/// Each unit of UTF-16 as four digits between two texts.
fn escape_utf16(to: &mut String, c: char, before: &str, after: &str) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // Writing to a String never fails.
        _ = write!(to, "{before}{unit:04x}{after}");
    }
}
