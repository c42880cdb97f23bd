//! Counting things, in all and for each address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use crate::net::address::counted_address;

/// Tables with a lock each.
pub const SHARDS: usize = 16;

/// What is counted: in all, and for each address that has some.
#[derive(Debug, Default)]
pub struct Tally {
    all: AtomicUsize,
    by_address: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The one for all.
    All,
    /// The one for this address.
    Address,
}

impl Tally {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.load(Relaxed)
    }

    /// Counts one in, of `most`; of no address yet.
    pub fn enter(self: &Arc<Self>, most: usize) -> Result<Place, Full> {
        let has_room = |n: usize| (n < most).then_some(n + 1);
        self.all.fetch_update(Relaxed, Relaxed, has_room).map_err(|_| Full::All)?;
        Ok(Place { tally: Arc::clone(self), address: None })
    }
}

/// One that is counted; given back when dropped.
#[derive(Debug)]
pub struct Place {
    tally: Arc<Tally>,
    address: Option<IpAddr>,
}

impl Place {
    /// Counts it for `client`, who may have `most` (0: any number).
    pub fn claim(&mut self, most: usize, client: IpAddr) -> Result<(), Full> {
        if most == 0 {
            return Ok(());
        }
        let address = counted_address(client);
        let mut shard = self.tally.by_address[shard_of(address)].lock();
        let count = shard.entry(address).or_default();
        if *count >= most {
            return Err(Full::Address);
        }
        *count += 1;
        self.address = Some(address);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tally.all.fetch_sub(1, Relaxed);
        if let Some(address) = self.address {
            let mut shard = self.tally.by_address[shard_of(address)].lock();
            if let Some(count) = shard.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    shard.remove(&address);
                }
            }
        }
    }
}

/// The table that an address is counted in.
pub fn shard_of(address: IpAddr) -> usize {
    let last = match address {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[7],
    };
    usize::from(last) % SHARDS
}
