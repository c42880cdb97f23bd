//! What is wrong with the server's TLS certificate, for an admin, before clients find out.

use std::{sync::Weak, time::Duration};

use tracing::{error, warn};

use super::{Server, Shared};
use crate::ingress::{IngressSettings, tls::Certificate};

const DAY: i64 = 24 * 60 * 60;
/// A certificate that ends sooner is warned of, in seconds.
const SOON: i64 = 30 * DAY;

/// How a certificate stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    NotYet,
    Good,
    /// Ends within so many days.
    Soon(i64),
    /// Has ended so many days ago.
    Ended(i64),
}

fn age(begins: i64, ends: i64, now: i64) -> Age {
    match ends - now {
        left if left < 0 => Age::Ended(-left / DAY),
        _ if begins > now => Age::NotYet,
        left if left < SOON => Age::Soon(left / DAY),
        _ => Age::Good,
    }
}

/// Says in the log what is wrong with `certificate` at `now`, in seconds since 1970.
pub(super) fn note(certificate: &Certificate, settings: &IngressSettings, now: i64) {
    let file = certificate.file.display();
    match age(certificate.begins, certificate.ends, now) {
        Age::Good => (),
        Age::NotYet => {
            warn!(certificate = %file, "the TLS certificate is not good yet: is this machine's clock right?")
        }
        Age::Soon(days) => {
            warn!(certificate = %file, days, "the TLS certificate ends within 30 days: replace it and reload");
        }
        Age::Ended(days) => {
            error!(certificate = %file, days, "the TLS certificate has ended, clients refuse it: replace it and reload");
        }
    }
    // An address may be one that no client knows; a name is what clients ask for.
    let mut hosts: Vec<&str> = settings.listeners.iter().map(|listener| &*listener.host).collect();
    hosts.dedup();
    let is_name = |host: &&str| !host.is_empty() && host.parse::<std::net::IpAddr>().is_err();
    for host in hosts.into_iter().filter(is_name).filter(|host| !certificate.covers(host)) {
        warn!(certificate = %file, host_name = host,
            "the TLS certificate is not for this name, clients that connect by it refuse it: get one with subjectAltName DNS:{host}");
    }
}

/// Looks at the certificate once a day, for as long as the server lives: nobody may reload for a year.
pub(super) async fn daily(server: Weak<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_secs(DAY.unsigned_abs())).await;
        let Some(shared) = server.upgrade() else { return };
        let (certificate, settings) = (shared.ingress.certificate(), shared.settings.load_full());
        Server(shared).note_certificate(&certificate, &settings.ingress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_warned_of_in_time() {
        let at = |now| age(100 * DAY, 200 * DAY, now);
        assert_eq!(at(99 * DAY), Age::NotYet);
        assert_eq!(at(100 * DAY), Age::Good);
        assert_eq!(at(170 * DAY), Age::Good);
        assert_eq!(at(170 * DAY + 1), Age::Soon(29));
        assert_eq!(at(200 * DAY), Age::Soon(0));
        assert_eq!(at(203 * DAY), Age::Ended(3));
    }
}
