//! The PROXY protocol, version 2, of HAProxy (`proxy-protocol.txt`, section 2.2): what precedes the
//! bytes of a connection to say who made it.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header of a TCP connection that `client` made to `server`. Of two families, IPv4 is given in its
/// mapped form.
pub fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let family = match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            addresses.extend(client.octets());
            addresses.extend(server.octets());
            TCP_OVER_IPV4
        }
        (client, server) => {
            addresses.extend(octets6(client));
            addresses.extend(octets6(server));
            TCP_OVER_IPV6
        }
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(server.port().to_be_bytes());
    let length = addresses.len() as u16;

    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_AND_COMMAND, family]);
    header.extend(length.to_be_bytes());
    header.extend(addresses);

    header
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(client: &str, server: &str) -> Vec<u8> {
        header(client.parse().unwrap(), server.parse().unwrap())
    }

    /// The bytes that the specification names, one field after the other.
    fn bytes(family: u8, length: u16, addresses: &[&[u8]]) -> Vec<u8> {
        let signature = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a,
        ];
        let fixed = [&signature[..], &[0x21, family], &length.to_be_bytes()];

        [&fixed.concat()[..], &addresses.concat()].concat()
    }

    #[test]
    fn a_header_of_ipv4_has_twelve_bytes_of_addresses() {
        let expected = bytes(
            0x11,
            12,
            &[
                &[10, 244, 2, 9],
                &[10, 244, 1, 7],
                &[0x9c, 0xb0],
                &[0x1f, 0x90],
            ],
        );

        assert_eq!(header_of("10.244.2.9:40112", "10.244.1.7:8080"), expected);
        // As a socket of both families names it.
        assert_eq!(
            header_of("[::ffff:10.244.2.9]:40112", "10.244.1.7:8080"),
            expected
        );
    }

    #[test]
    fn a_header_of_ipv6_has_thirty_six() {
        let mut client = [0; 16];
        (client[0], client[15]) = (0xfd, 0x09);
        let mut server = [0; 16];
        (server[0], server[15]) = (0xfd, 0x07);

        assert_eq!(
            header_of("[fd00::9]:40112", "[fd00::7]:443"),
            bytes(0x21, 36, &[&client, &server, &[0x9c, 0xb0], &[0x01, 0xbb]])
        );
    }

    #[test]
    fn addresses_of_two_families_are_both_given_as_ipv6() {
        let header = header_of("[fd00::9]:40112", "10.244.1.7:8080");

        assert_eq!((header[13], header.len()), (0x21, 16 + 36));
        assert_eq!(header[32..48][10..], [0xff, 0xff, 10, 244, 1, 7]);
    }
}
