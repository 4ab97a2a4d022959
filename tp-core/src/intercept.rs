//! What a user means by `tp intercept WORKLOAD --port …`: the words as types, and the one port of
//! the pods that they lead to; and who of several users holds it.

use std::fmt;

pub mod holders;
pub mod matching;
pub mod ports;
pub mod proxy_protocol;
pub mod workload;

/// A label of RFC 1123 as Kubernetes checks it: at most 63 lower-case letters, digits and hyphens,
/// none of the latter at an end (`IsDNS1123Label`).
fn is_label(text: &str) -> bool {
    let is_inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';

    (1..=63).contains(&text.len())
        && text.chars().all(is_inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Items in a sentence: `a, b or c`.
fn listed<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match (items.pop(), items.is_empty()) {
        (None, _) => String::new(),
        (Some(last), true) => last,
        (Some(last), false) => format!("{} or {last}", items.join(", ")),
    }
}
