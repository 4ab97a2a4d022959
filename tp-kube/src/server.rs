//! The field `server` of a cluster, taken as kubectl takes it (`DefaultServerURL` of client-go's
//! `rest/url_utils.go`, as its kubeconfig loader calls it): a server without a scheme is HTTP.

use http::{Uri, uri::Scheme};

/// kubectl's default for an empty field.
const DEFAULT_URL: &str = "http://localhost:8080";

/// Why a `server` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServerUrlError {
    #[error("it must be a URL, or HOST:PORT, which is taken for http")]
    Malformed,
    #[error("its scheme must be http or https")]
    Scheme,
}

/// The server's URL without query and credentials: the API server takes none of these from a URL.
pub(crate) fn url(server: &str) -> Result<Uri, ServerUrlError> {
    if server.is_empty() {
        return DEFAULT_URL.parse().map_err(|_| ServerUrlError::Malformed);
    }
    let Some((scheme, rest)) = server.split_once("://") else {
        let url = without_extras("http", server)?;
        // Only a URL may have a path.
        return match url.path() {
            "" | "/" => Ok(url),
            _ => Err(ServerUrlError::Malformed),
        };
    };
    let scheme = scheme.to_ascii_lowercase();
    if rest.is_empty() || rest.starts_with('/') {
        return Err(ServerUrlError::Malformed);
    }
    if scheme != "http" && scheme != "https" {
        return Err(ServerUrlError::Scheme);
    }

    without_extras(&scheme, rest)
}

fn without_extras(scheme: &str, rest: &str) -> Result<Uri, ServerUrlError> {
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let address = authority.rsplit_once('@').map_or(authority, |(_, it)| it);
    let url: Uri = format!("{scheme}://{address}{path}")
        .parse()
        .map_err(|_| ServerUrlError::Malformed)?;

    let host = url.host().unwrap_or_default();
    // An invalid port would be dropped silently.
    let has_odd_port = address.len() > host.len() && url.port_u16().is_none();

    match host.is_empty() || has_odd_port {
        true => Err(ServerUrlError::Malformed),
        false => Ok(url),
    }
}

/// The port that a connection goes to.
pub(crate) fn port(url: &Uri) -> u16 {
    url.port_u16().unwrap_or({
        if url.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        }
    })
}

/// `url` with its port made explicit.
pub(crate) fn with_port(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    let host = url.host().unwrap_or_default();
    parts.authority = format!("{host}:{}", port(url)).parse().ok();

    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubectl 1.32 does with each, seen with `-v=6`.
    #[test]
    fn a_server_is_taken_as_kubectl_takes_it() {
        for (server, expected) in [
            ("https://192.0.2.1:6443", "https://192.0.2.1:6443/"),
            ("https://192.0.2.1:6443/", "https://192.0.2.1:6443/"),
            ("HTTPS://192.0.2.1:6443", "https://192.0.2.1:6443/"),
            ("https://[2001:db8::1]:6443", "https://[2001:db8::1]:6443/"),
            (
                "https://rancher.corp.test/k8s/clusters/c-xyz",
                "https://rancher.corp.test/k8s/clusters/c-xyz",
            ),
            ("https://192.0.2.1:6443?x=1", "https://192.0.2.1:6443/"),
            (
                "https://me:secret@192.0.2.1:6443/x",
                "https://192.0.2.1:6443/x",
            ),
            ("192.0.2.1:6443", "http://192.0.2.1:6443/"),
            ("192.0.2.1:6443/", "http://192.0.2.1:6443/"),
            ("localhost:8080", "http://localhost:8080/"),
            ("api.corp.test", "http://api.corp.test/"),
            ("", "http://localhost:8080/"),
        ] {
            assert_eq!(url(server).unwrap().to_string(), expected, "{server}");
        }
    }

    #[test]
    fn what_kubectl_refuses_is_refused() {
        for (server, why) in [
            ("192.0.2.1:6443/x", ServerUrlError::Malformed),
            ("unix:///x", ServerUrlError::Malformed),
            ("https:///x", ServerUrlError::Malformed),
            ("https://", ServerUrlError::Malformed),
            ("//192.0.2.1:6443", ServerUrlError::Malformed),
            (" https://192.0.2.1:6443", ServerUrlError::Scheme),
            ("ftp://192.0.2.1:6443", ServerUrlError::Scheme),
            ("https://192.0.2.1:99999", ServerUrlError::Malformed),
            (":6443", ServerUrlError::Malformed),
        ] {
            assert_eq!(url(server), Err(why), "{server}");
        }
    }

    #[test]
    fn the_port_follows_the_scheme() {
        for (server, expected) in [
            ("https://a", 443),
            ("http://a", 80),
            ("https://a:6443", 6443),
        ] {
            assert_eq!(port(&url(server).unwrap()), expected);
        }
        for (server, expected) in [
            ("http://a/x", "http://a:80/x"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:443/"),
        ] {
            assert_eq!(with_port(&url(server).unwrap()).to_string(), expected);
        }
    }
}
