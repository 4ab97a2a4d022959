//! Rust text as tokens, for the rules about names and paths.

/// A word, a sign or a string. Only the sign `::` has two characters; a string begins with `"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: usize,
}

impl Token<'_> {
    pub(super) fn is_word(self) -> bool {
        self.text.starts_with(is_word_character)
    }
}

/// First words of items that end with a semicolon, even after braces.
const WITH_SEMICOLON: [&str; 4] = ["let", "static", "type", "use"];
/// First words of items that end with a semicolon or a block.
const WITH_BLOCK: [&str; 10] = [
    "async", "const", "enum", "extern", "fn", "impl", "mod", "struct", "trait", "unsafe",
];

/// All tokens of a text, without comments, lifetimes and characters in quotes.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, is_kept) = length_of_next(rest, first);
        if is_kept {
            let quote = rest[..length].find('"').unwrap_or(0);
            let text = &rest[quote..length];
            tokens.push(Token { text, line });
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }

    tokens
}

/// The length in bytes of the next piece of text, and whether it is a token.
fn length_of_next(rest: &str, first: char) -> (usize, bool) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (length_of_comment(rest), false);
    }
    if let Some(length) = length_of_string(rest) {
        return (length, true);
    }
    if first == '\'' {
        return (length_of_quoted(rest), false);
    }
    if is_word_character(first) {
        let length = rest.find(|c| !is_word_character(c)).unwrap_or(rest.len());
        return (length, true);
    }
    if rest.starts_with("::") {
        return (2, true);
    }

    (first.len_utf8(), !first.is_whitespace())
}

fn is_word_character(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn length_of_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }

    rest.len()
}

/// A string of any kind at the beginning of the text.
fn length_of_string(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c| !matches!(c, 'b' | 'c' | 'r'))?;
    let (prefix, body) = rest.split_at(prefix);
    if !["", "b", "br", "c", "cr", "r"].contains(&prefix) {
        return None;
    }
    let hashes = body.find(|c| c != '#')?;
    let is_raw = prefix.ends_with('r');
    if !body[hashes..].starts_with('"') || (hashes > 0 && !is_raw) {
        return None;
    }
    let begin = prefix.len() + hashes + 1;
    if is_raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(rest[begin..].find(&end)? + begin + end.len());
    }

    let mut is_escaped = false;
    for (at, character) in rest[begin..].char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some(begin + at + 1),
            _ => {}
        }
    }
    None
}

/// A character in quotes, or a lifetime.
fn length_of_quoted(rest: &str) -> usize {
    let mut inside = rest[1..].chars();
    match inside.next() {
        // The first character after the backslash may be a quote itself.
        Some('\\') => rest[3..].find('\'').map_or(rest.len(), |at| at + 4),
        Some(character) if inside.next() == Some('\'') => character.len_utf8() + 2,
        _ => rest[1..]
            .find(|c| !is_word_character(c))
            .map_or(rest.len(), |at| at + 1),
    }
}

/// The tokens without the items under `#[cfg(test)]`.
pub(super) fn production<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_for_tests(&tokens[at..]) {
            at += length_of_item(&tokens[at..]);
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }

    kept
}

pub(super) fn is_for_tests(tokens: &[Token<'_>]) -> bool {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];

    tokens.len() >= attribute.len()
        && attribute
            .iter()
            .zip(tokens)
            .all(|(text, token)| *text == token.text)
}

/// The number of tokens of an item, a field or a statement with its attributes.
fn length_of_item(tokens: &[Token<'_>]) -> usize {
    let mut at = 0;
    while tokens.get(at).is_some_and(|token| token.text == "#") {
        at += 1 + length_of_group(&tokens[at + 1..]);
    }
    if tokens.get(at).is_some_and(|token| token.text == "pub") {
        at += 1;
        if tokens.get(at).is_some_and(|token| token.text == "(") {
            at += length_of_group(&tokens[at..]);
        }
    }
    let first = tokens.get(at).map_or("", |token| token.text);
    let second = tokens.get(at + 1).map_or("", |token| token.text);
    let ends_with_semicolon =
        WITH_SEMICOLON.contains(&first) || (first == "const" && second != "fn");
    let ends_with_block = first == "{" || (WITH_BLOCK.contains(&first) && !ends_with_semicolon);
    while let Some(token) = tokens.get(at) {
        match token.text {
            ";" => return at + 1,
            "," if !ends_with_block && !ends_with_semicolon => return at + 1,
            ")" | "]" | "}" => return at,
            "(" | "[" => at += length_of_group(&tokens[at..]),
            "{" => {
                at += length_of_group(&tokens[at..]);
                if ends_with_block {
                    return at;
                }
            }
            _ => at += 1,
        }
    }

    at
}

/// The number of tokens from an opening bracket to the one that closes it.
pub(super) fn length_of_group(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }

    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).into_iter().map(|token| token.text).collect()
    }

    fn produced(text: &str) -> String {
        let kept = production(&tokens(text));

        kept.iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_lifetimes_and_characters_are_no_tokens() {
        assert_eq!(texts("a /* b /* c */ d */ e // f\ng"), ["a", "e", "g"]);
        assert_eq!(texts("fn a<'b>('\\'', '\"', 'c')"), texts("fn a<>(, , )"));
    }

    #[test]
    fn a_string_is_one_token() {
        assert_eq!(
            texts(r#"a("b \" c", d)"#),
            ["a", "(", r#""b \" c""#, ",", "d", ")"]
        );
        assert_eq!(texts("br#\"a \" b\"# c"), ["\"a \" b\"#", "c"]);
    }

    #[test]
    fn a_token_knows_its_line() {
        let found = tokens("a\n\"b\nc\"\nd::e");

        let lines: Vec<usize> = found.iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 2, 4, 4, 4]);
    }

    #[test]
    fn what_is_for_tests_only_is_no_production_code() {
        let item = "#[cfg(test)]\n#[path = \"b\"]\npub(crate) fn a<T, U>() { b(); }";
        assert_eq!(produced(&format!("x {item} y")), "xy");
        assert_eq!(produced("#[cfg(test)] use a::{b, c}; x"), "x");
        assert_eq!(produced("#[cfg(test)] const A: B = B { c: 1 }; x"), "x");
        assert_eq!(
            produced("struct A { #[cfg(test)] a: b::C, d: E }"),
            "structA{d:E}"
        );
        assert_eq!(produced("f(A { b, #[cfg(test)] c: d(e, f) })"), "f(A{b,})");
        assert_eq!(produced("{ #[cfg(test)] { a; } b }"), "{b}");
    }
}
