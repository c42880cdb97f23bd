//! PROXY headers: what was written is read, whatever follows it, in any fragmentation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sametime_mux::wire::proxy_protocol::{Parsed, could_be, is_header, parse, v2};

use super::Choices;

/// The longest header that is accepted.
const LONGEST: usize = 16 + 4096;

/// The first byte chooses what the rest is: the bytes to read, what follows the beginning of one of the two versions, or
/// the addresses of a header that is written.
pub fn check(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    match choice % 4 {
        0 => read(bytes),
        1 => read(&[b"PROXY TCP", bytes].concat()),
        2 => read(&[b"\r\n\r\n\0\r\nQUIT\n", bytes].concat()),
        _ => write(bytes),
    }
}

fn read(bytes: &[u8]) {
    let whole = parse(bytes);
    assert!(!is_header(bytes) || could_be(bytes));
    match whole {
        Ok(Parsed::Whole { length, source }) => {
            assert!(is_header(bytes) && length <= bytes.len() && length <= LONGEST);
            // Bytes behind the header change nothing.
            assert_eq!(parse(&bytes[..length]), whole);
            if bytes[0] == b'P' {
                assert!(length <= 107 && bytes[..length].ends_with(b"\r\n"));
                let line = std::str::from_utf8(&bytes[..length]).expect("version 1 is text");
                assert_eq!(line.matches("\r\n").count(), 1);
                if let Some(source) = source {
                    // The standard library reads the fields as the same address.
                    let fields: Vec<&str> = line.trim_end().split(' ').collect();
                    assert_eq!(fields.len(), 6);
                    assert_eq!(fields[2].parse::<IpAddr>().expect("an address"), source.ip());
                    assert_eq!(fields[4].parse::<u16>().expect("a port"), source.port());
                }
            }
        }
        Ok(Parsed::Partial) => assert!(could_be(bytes) && bytes.len() < LONGEST),
        Err(_) => (),
    }
    let step = 1 + bytes.len() / 64;
    for end in (0..bytes.len()).step_by(step) {
        match parse(&bytes[..end]) {
            Ok(Parsed::Partial) => (),
            Ok(found) => assert_eq!(whole, Ok(found), "after {end} bytes"),
            Err(_) => assert!(whole.is_err(), "after {end} bytes"),
        }
    }
}

fn write(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let six = choices.byte() & 1 == 1;
    let mut address = |n: usize| {
        let mut octets = [0; 16];
        for octet in &mut octets[..n] {
            *octet = choices.byte();
        }
        let port = u16::from_be_bytes([choices.byte(), choices.byte()]);
        let ip = if n == 4 {
            IpAddr::from(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]))
        } else {
            Ipv6Addr::from(octets).into()
        };
        SocketAddr::new(ip, port)
    };
    let (from, to) = (address(if six { 16 } else { 4 }), address(if six { 16 } else { 4 }));
    let header = v2(from, to);
    let read = parse(&[&header, choices.0].concat());
    let Ok(Parsed::Whole { source: Some(source), length }) = read else { panic!("{read:?}") };
    assert_eq!((source.ip().to_canonical(), source.port()), (from.ip().to_canonical(), from.port()));
    assert_eq!(length, header.len());
}
