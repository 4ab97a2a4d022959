//! Values of flags, checked before any request.

/// A network in CIDR notation, or one address.
pub(crate) fn network(text: &str) -> Result<String, String> {
    if let Ok(network) = text.parse::<ipnet::IpNet>() {
        return Ok(network.trunc().to_string());
    }
    text.parse::<std::net::IpAddr>()
        .map(|address| ipnet::IpNet::from(address).to_string())
        .map_err(|_| "not a network such as 10.20.0.0/16, nor an address".into())
}

/// The name of a namespace.
pub(crate) fn namespace(text: &str) -> Result<String, String> {
    match is_label(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("a namespace is called by at most 63 lower-case letters, digits and `-`".into())
        }
    }
}

/// The name of a namespace, or nothing, as for kubectl: the context's namespace.
pub(crate) fn namespace_or_none(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        name => namespace(name),
    }
}

/// A label of RFC 1123, section 2.1, in lower case, as the API server has it.
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_label_in_lower_case() {
        let longest = "a".repeat(63);
        for name in ["shop", "team-b", "1", "a--b", &longest] {
            assert_eq!(namespace(name).as_deref(), Ok(name));
        }
        let too_long = "a".repeat(64);
        for name in [
            "",
            "SHOP",
            "shop/../x",
            "-a",
            "a-",
            "a.b",
            "a b",
            "é",
            &too_long,
        ] {
            assert!(namespace(name).is_err(), "{name}");
        }
        assert_eq!(namespace_or_none("").as_deref(), Ok(""));
        assert!(namespace_or_none("SHOP").is_err());
    }
}
