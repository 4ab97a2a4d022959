//! The proxy for an API server, chosen as by kubectl: that of the kubeconfig, or that of the
//! environment as Go's `net/http` reads it (`golang.org/x/net/http/httpproxy`).
//!
//! kube compares NO_PROXY with the proxy's own address and refuses a list for one odd item
//! (kube-client 5.0.0, `config/file_loader.rs` and `config/no_proxy.rs`), so its code is not used.

use std::net::IpAddr;

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use ipnet::IpNet;

use crate::server;

/// Schemes that a `proxy-url` may have (client-go, `tools/clientcmd`).
const KUBECONFIG_SCHEMES: [&str; 3] = ["http", "https", "socks5"];

/// Why the `proxy-url` of a kubeconfig cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProxyUrlError {
    #[error("it is not a URL with a host")]
    Malformed,
    #[error("its scheme must be http, https or socks5")]
    Scheme,
}

/// The proxy settings of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    http: Option<String>,
    https: Option<String>,
    no_proxy: Option<String>,
}

impl Environment {
    /// Reads the variables by `variable`. The first of a pair that is not empty counts.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |names: [&str; 2]| {
            names
                .into_iter()
                .filter_map(&variable)
                .find(|value| !value.is_empty())
        };

        Self {
            http: either(["HTTP_PROXY", "http_proxy"]),
            https: either(["HTTPS_PROXY", "https_proxy"]),
            no_proxy: either(["NO_PROXY", "no_proxy"]),
        }
    }

    /// The proxy for `server`, if there is one. An invalid proxy is ignored.
    pub(crate) fn proxy(&self, server: &Uri) -> Option<Uri> {
        let proxy = match server.scheme() == Some(&Scheme::HTTPS) {
            true => self.https.as_deref(),
            false => self.http.as_deref(),
        };
        let proxy = parse_lenient(proxy?)?;

        self.uses_proxy(server.host()?, server::port(server))
            .then_some(proxy)
    }

    /// Returns whether `host` is reached by the proxy: NO_PROXY and this machine are exceptions.
    fn uses_proxy(&self, host: &str, port: u16) -> bool {
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        if host == "localhost" {
            return false;
        }
        let address = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        if address.is_some_and(|ip| ip.is_loopback()) {
            return false;
        }
        let items = self.no_proxy.as_deref().unwrap_or_default().split(',');

        !items
            .map(|item| item.trim().to_ascii_lowercase())
            .any(|item| matches(&item, &host, address, port))
    }
}

/// Returns whether an item of NO_PROXY names the host.
fn matches(item: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if item == "*" {
        return true;
    }
    if let Ok(network) = item.parse::<IpNet>() {
        return address.is_some_and(|ip| network.contains(&ip));
    }
    let (name, item_port) = split_port(item);
    if item_port.is_some_and(|wanted| wanted != port.to_string()) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if name.is_empty() {
        return false;
    }
    if let Ok(ip) = name.parse::<IpAddr>() {
        return address == Some(ip.to_canonical());
    }
    let name = name
        .strip_prefix('*')
        .filter(|it| it.starts_with('.'))
        .unwrap_or(name);

    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host == name || host.strip_suffix(name).is_some_and(|it| it.ends_with('.')),
    }
}

/// HOST:PORT or [IPv6]:PORT; anything else is all host.
fn split_port(item: &str) -> (&str, Option<&str>) {
    match item.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (item, None),
    }
}

/// Parses a proxy of the environment; its default scheme is HTTP.
fn parse_lenient(proxy: &str) -> Option<Uri> {
    with_host(proxy).or_else(|| with_host(&format!("http://{proxy}")))
}

/// The `proxy-url` of a kubeconfig.
pub(crate) fn of_kubeconfig(proxy: &str) -> Result<Uri, ProxyUrlError> {
    let url = with_host(proxy).ok_or(ProxyUrlError::Malformed)?;

    match url.scheme_str() {
        Some(scheme) if KUBECONFIG_SCHEMES.contains(&scheme) => Ok(url),
        _ => Err(ProxyUrlError::Scheme),
    }
}

/// A URL with scheme, host and port; a missing port follows the scheme, because the connector reads
/// it from the URL.
fn with_host(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let scheme = url.scheme_str()?.to_ascii_lowercase();
    let authority = url.authority().filter(|it| !it.host().is_empty())?;
    let port = match scheme.as_str() {
        "https" => 443,
        "socks5" | "socks5h" => 1080,
        _ => 80,
    };
    let authority = match authority.port() {
        Some(_) => authority.clone(),
        None => format!("{authority}:{port}").parse::<Authority>().ok()?,
    };

    Uri::builder()
        .scheme(scheme.as_str())
        .authority(authority)
        .path_and_query(PathAndQuery::from_static("/"))
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "https://172.30.0.11:6443";

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn proxy(variables: &[(&str, &str)], server: &str) -> Option<String> {
        environment(variables)
            .proxy(&server::url(server).unwrap())
            .map(|url| url.to_string())
    }

    /// Each seen with kubectl 1.32 and a proxy that logs.
    #[test]
    fn no_proxy_is_read_as_kubectl_reads_it() {
        for (no_proxy, server, is_direct) in [
            ("", SERVER, false),
            ("172.30.0.11", SERVER, true),
            ("172.30.0.0/24", SERVER, true),
            ("172.30.1.0/24", SERVER, false),
            ("172.30.0.11,localhost,", SERVER, true),
            ("localhost, 172.30.0.11", SERVER, true),
            ("localhost 172.30.0.11", SERVER, false),
            ("*", SERVER, true),
            (".svc,.cluster.local,172.30.0.11:6443", SERVER, true),
            ("172.30.0.11:443", SERVER, false),
            ("172.30.0.11:443", "https://172.30.0.11", true),
            ("CORP.test", "https://api.corp.test:6443", true),
            ("corp.test", "https://corp.test:6443", true),
            ("corp.test", "https://notcorp.test:6443", false),
            (".corp.test", "https://corp.test:6443", false),
            (".corp.test", "https://api.corp.test:6443", true),
            ("*.corp.test", "https://api.corp.test:6443", true),
            ("*corp.test", "https://api.corp.test:6443", false),
            ("corp.test:6443", "https://api.corp.test:6443", true),
            ("corp.test:443", "https://api.corp.test:6443", false),
            ("[2001:db8::1]:6443", "https://[2001:db8::1]:6443", true),
            ("2001:db8::1", "https://[2001:db8::1]:6443", true),
            ("2001:db8::/32", "https://[2001:db8::1]:6443", true),
            (":6443", SERVER, false),
            ("", "https://localhost:6443", true),
            ("", "https://127.0.0.1:6443", true),
            ("", "https://[::1]:6443", true),
        ] {
            let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", no_proxy)];
            let expected = (!is_direct).then(|| "http://proxy:3128/".to_owned());
            assert_eq!(proxy(&variables, server), expected, "{no_proxy} {server}");
        }
    }

    #[test]
    fn the_proxy_is_that_of_the_servers_scheme() {
        let variables = [("HTTP_PROXY", "http://a:1"), ("https_proxy", "b:2")];

        for (server, expected) in [(SERVER, "http://b:2/"), ("172.30.0.11:8080", "http://a:1/")] {
            assert_eq!(proxy(&variables, server).as_deref(), Some(expected));
        }
        assert_eq!(proxy(&[("HTTP_PROXY", "http://a:1")], SERVER), None);
        assert_eq!(proxy(&[("ALL_PROXY", "http://a:1")], SERVER), None);
    }

    #[test]
    fn upper_case_comes_first_unless_it_is_empty() {
        for (upper, expected) in [("http://a:1", "http://a:1/"), ("", "http://b:2/")] {
            let variables = [("HTTPS_PROXY", upper), ("https_proxy", "http://b:2")];
            assert_eq!(proxy(&variables, SERVER).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_proxy_of_the_environment_needs_no_scheme_and_no_port() {
        for (value, expected) in [
            ("127.0.0.1:3128", Some("http://127.0.0.1:3128/")),
            ("proxy", Some("http://proxy:80/")),
            ("https://proxy", Some("https://proxy:443/")),
            ("socks5h://proxy", Some("socks5h://proxy:1080/")),
            (
                "http://u%40x:p@proxy:3128",
                Some("http://u%40x:p@proxy:3128/"),
            ),
            ("http://", None),
        ] {
            let found = proxy(&[("HTTPS_PROXY", value)], SERVER);
            assert_eq!(found.as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn a_proxy_of_the_kubeconfig_is_checked() {
        let of = |text| of_kubeconfig(text).map(|url| url.to_string());

        assert_eq!(
            of("socks5://127.0.0.1:1"),
            Ok("socks5://127.0.0.1:1/".into())
        );
        assert_eq!(of("proxy:3128"), Err(ProxyUrlError::Malformed));
        assert_eq!(of("http:///x"), Err(ProxyUrlError::Malformed));
        assert_eq!(of("ftp://proxy:1"), Err(ProxyUrlError::Scheme));
    }
}
