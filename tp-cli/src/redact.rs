//! Removes secrets from text that leaves the machine.
//!
//! tp logs no secret; this is a second defence, for errors that quote a server, a kubeconfig or an
//! exec plugin.

const MARK: &str = "[removed]";
/// Name endings of secret values, in `name: value`, `name=value` or `"name":"value"`. Names are
/// compared without `-` and `_`.
const NAMES: [&str; 14] = [
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "apikey",
    "accesskey",
    "privatekey",
    "signature",
    "authorization",
    "cookie",
    // Fields of kubeconfigs.
    "keydata",
    "certificatedata",
    "authoritydata",
];
/// Prefixes of tokens: AWS, Google, GitHub, GitLab.
const TOKEN_STARTS: [&str; 4] = ["k8s-aws-v1.", "ya29.", "ghp_", "glpat-"];
/// YAML indicators of a value in the lines below.
const BLOCK_STARTS: [&str; 7] = ["", "|", "|-", "|+", ">", ">-", ">+"];
/// First part of a JSON web token: `{"` in base64.
const JWT_START: &str = "eyJ";
const JWT_MIN: usize = 40;

/// A secret value in the lines below its name.
struct BlockValue {
    /// Indentation of the line with the name.
    indent: usize,
    is_first: bool,
}

/// `text` without PEM blocks, bearer tokens, JSON web tokens, passwords in addresses and values
/// named like secrets.
pub(crate) fn redact(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut in_pem = false;
    let mut below = None;
    for line in text.split_inclusive('\n') {
        if in_pem {
            in_pem = !line.contains("-----END ");
            continue;
        }
        if let Some(start) = line.find("-----BEGIN ") {
            in_pem = !line[start..].contains("-----END ");
            result.push_str(&redact_line(&line[..start]).0);
            result.push_str(MARK);
            result.push('\n');
            below = None;
            continue;
        }
        if let Some(BlockValue { indent, is_first }) = &mut below
            && (*is_first || indent_of(line) > *indent)
        {
            if *is_first && !line.trim().is_empty() {
                result.push_str(MARK);
                result.push('\n');
                *is_first = false;
            }
            continue;
        }
        let (redacted, is_below) = redact_line(line);
        result.push_str(&redacted);
        below = is_below.then(|| BlockValue {
            indent: indent_of(line),
            is_first: true,
        });
    }

    result
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '\t']).len()
}

/// `https://user:password@host` without the user information.
fn without_user_info(line: &str) -> String {
    let mut parts = line.split("://");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end =
            part.find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\''));
        let authority = &part[..end.unwrap_or(part.len())];
        let host = authority.rfind('@').unwrap_or_default();
        result.push_str("://");
        if host > 0 {
            result.push_str(MARK);
        }
        result.push_str(&part[host..]);
    }

    result
}

/// Returns the line, and whether it names a secret whose value is below.
fn redact_line(line: &str) -> (String, bool) {
    let line = without_user_info(line);
    let mut rest = line.as_str();
    let mut is_below = false;
    let mut result = String::with_capacity(line.len());
    while let Some(word) = next_word(rest) {
        let before = &rest[..word.start];
        result.push_str(before);
        let text = &rest[word.start..word.end];
        rest = &rest[word.end..];
        if is_token(text) {
            result.push_str(MARK);
            continue;
        }
        result.push_str(text);
        if text.eq_ignore_ascii_case("bearer") || text.eq_ignore_ascii_case("basic") {
            rest = skip_value(rest, &mut result, Separator::Space);
        } else if is_name(text) && ends_in_name(rest) {
            is_below = true;
        } else if is_name(text) {
            rest = skip_value(rest, &mut result, Separator::Sign);
        }
    }
    result.push_str(rest);

    (result, is_below)
}

fn is_name(word: &str) -> bool {
    let plain: String = word
        .chars()
        .filter(|c| !matches!(c, '-' | '_'))
        .map(|c| c.to_ascii_lowercase())
        .collect();

    NAMES.iter().any(|name| plain.ends_with(name))
}

/// Returns whether only the sign between name and value follows.
fn ends_in_name(rest: &str) -> bool {
    let rest = rest.trim_start_matches(['"', '\\', '\'', ' ', '\t']);

    rest.strip_prefix([':', '='])
        .is_some_and(|value| BLOCK_STARTS.contains(&value.trim()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Separator {
    /// `Bearer VALUE`
    Space,
    /// `name: VALUE`, `name=VALUE`, `"name": "VALUE"`
    Sign,
}

/// Copies the separator, replaces the value after it, and returns the rest. Without a separator it
/// takes nothing.
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

fn is_token(word: &str) -> bool {
    let is_jwt = word.len() >= JWT_MIN && word.starts_with(JWT_START) && word.contains('.');

    is_jwt || TOKEN_STARTS.iter().any(|start| word.starts_with(start))
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
            "proxy https://dev:opaque-token@proxy.corp:3128 refuses".to_owned(),
            "https://opaque-token@host and http://a:opaque-token@b/".to_owned(),
            "x-api-key: opaque-token".to_owned(),
            "apikey=opaque-token".to_owned(),
            "AWS_SECRET_ACCESS_KEY=opaque-token".to_owned(),
            "aws_session_token = opaque-token".to_owned(),
            "{\"SecretAccessKey\":\"opaque-token\"}".to_owned(),
            "got k8s-aws-v1.opaque-token from the plugin".to_owned(),
            "token:\n  opaque-token\n".to_owned(),
            "\"id-token\":\n\"opaque-token\"\n".to_owned(),
            "users:\n  password: |\n    opaque-token\n    opaque-token\n".to_owned(),
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
    fn what_follows_a_value_below_its_name_stays() {
        let text = "user:\n  token: |-\n\n    one\n    two\n  name: dev\nother: x\n";

        assert_eq!(
            redact(text),
            "user:\n  token: |-\n[removed]\n  name: dev\nother: x\n"
        );
        let key = "private_key:\n-----BEGIN KEY-----\nMII\n-----END KEY-----\nafter\n";
        assert_eq!(redact(key), "private_key:\n[removed]\nafter\n");
    }

    #[test]
    fn a_key_on_one_line_does_not_swallow_the_rest() {
        let text = "pem=\"-----BEGIN CERTIFICATE-----MIIB-----END CERTIFICATE-----\"\nafter\n";

        assert_eq!(redact(text), "pem=\"[removed]\nafter\n");
    }

    #[test]
    fn everything_else_stays() {
        let text = "2026-01-01T00:00:00Z INFO Connected context=lab token expired; basic setup\n\
                    dns: web.shop.svc.cluster.local → 10.96.1.2\n\
                    metadata: name=web\nsee https://kubernetes.default:6443/api?x=1 of dev@corp.test\n";

        assert_eq!(
            redact(&text.replace("basic setup", "")),
            text.replace("basic setup", "")
        );
    }
}
