//! Counts in total and for each client address, and the one table of addresses.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use crate::net::address::counted_address;

/// The number of parts that a table shared by all cores has. Each part has its own lock, so that cores seldom wait for
/// each other.
pub const SHARDS: usize = 16;

type Shard<T> = HashMap<IpAddr, T>;

/// A value for each client address, for example a count.
///
/// An address whose value is `T::default()` is not in the table, so the table's size depends only on the addresses
/// that have something now. All addresses that limits count as one ([`counted_address`]) have one value.
pub struct AddressTable<T>([Mutex<Shard<T>>; SHARDS]);

impl<T> Default for AddressTable<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<T> fmt::Debug for AddressTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressTable").finish_non_exhaustive()
    }
}

impl<T: Default + PartialEq> AddressTable<T> {
    /// Changes the value of `client`'s address. The lock is held during `change`: a check in it and the change that
    /// follows are one step.
    pub fn update<R>(&self, client: IpAddr, change: impl FnOnce(&mut T) -> R) -> R {
        let address = counted_address(client);
        update(&mut self.shard(address).lock(), address, change)
    }

    /// As [`Self::update`], in a table of bounded size: a shard that has `most` addresses takes no further one, and
    /// all others of this shard have one value together.
    pub fn update_at_most<R>(&self, most: usize, client: IpAddr, change: impl FnOnce(&mut T) -> R) -> R {
        let mut address = counted_address(client);
        let mut shard = self.shard(address).lock();
        if shard.len() >= most && !shard.contains_key(&address) {
            // No client has this address.
            address = Ipv4Addr::UNSPECIFIED.into();
        }
        update(&mut shard, address, change)
    }

    /// The value of `client`'s address.
    pub fn get(&self, client: IpAddr) -> T
    where
        T: Copy,
    {
        let address = counted_address(client);
        self.shard(address).lock().get(&address).copied().unwrap_or_default()
    }

    /// Removes every address for whose value `keep` is false, and frees memory that is not needed any more.
    pub fn retain(&self, keep: impl Fn(&T) -> bool) {
        for shard in &self.0 {
            let mut shard = shard.lock();
            shard.retain(|_, value| keep(value));
            if shard.capacity() > 4 * shard.len() + 64 {
                shard.shrink_to_fit();
            }
        }
    }

    /// Removes every address.
    pub fn clear(&self) {
        self.0.iter().for_each(|shard| *shard.lock() = HashMap::new());
    }

    /// The number of addresses.
    pub fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether no address has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shard that an address is in: by its last byte, or by the last one of an IPv6 network.
    fn shard(&self, address: IpAddr) -> &Mutex<Shard<T>> {
        let byte = match address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[7],
        };
        &self.0[usize::from(byte) % SHARDS]
    }
}

fn update<T: Default + PartialEq, R>(shard: &mut Shard<T>, address: IpAddr, change: impl FnOnce(&mut T) -> R) -> R {
    match shard.entry(address) {
        Entry::Occupied(mut entry) => {
            let result = change(entry.get_mut());
            if *entry.get() == T::default() {
                entry.remove();
            }
            result
        }
        Entry::Vacant(entry) => {
            let mut value = T::default();
            let result = change(&mut value);
            if value != T::default() {
                entry.insert(value);
            }
            result
        }
    }
}

/// Counts things, in total and for each address.
///
/// No limit is exceeded by a race. The total is checked and raised in one atomic operation, and an address's count
/// under its shard's lock. The two are separate steps: whoever is refused for its address was counted in the total
/// for a moment.
#[derive(Debug, Default)]
pub struct Tally {
    total: AtomicUsize,
    /// Those of the total that are not settled.
    unsettled: AtomicUsize,
    by_address: AddressTable<usize>,
}

/// The limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The limit of the total.
    Total,
    /// The limit of this address.
    Address,
}

impl Tally {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.total.load(Relaxed)
    }

    /// How many of them are not settled: see [`Permit::settle`].
    pub fn unsettled(&self) -> usize {
        self.unsettled.load(Relaxed)
    }

    /// Counts one more in the total, which may be at most `most`, and in no address yet.
    ///
    /// # Errors
    /// [`Full::Total`]: the limit is reached, and nothing was counted.
    pub fn enter(self: &Arc<Self>, most: usize) -> Result<Permit, Full> {
        let one_more = |n: usize| (n < most).then_some(n + 1);
        self.total.fetch_update(Relaxed, Relaxed, one_more).map_err(|_| Full::Total)?;
        self.unsettled.fetch_add(1, Relaxed);
        Ok(Permit { tally: Arc::clone(self), address: None, is_settled: false })
    }
}

/// Permits one thing that a [`Tally`] counts until this is dropped.
#[derive(Debug)]
pub struct Permit {
    tally: Arc<Tally>,
    /// The address that it is counted for, once it is.
    address: Option<IpAddr>,
    is_settled: bool,
}

impl Permit {
    /// What it is for has done what it came for, and may go on or end at any time. Without effect from the second call on.
    pub fn settle(&mut self) {
        if !std::mem::replace(&mut self.is_settled, true) {
            self.tally.unsettled.fetch_sub(1, Relaxed);
        }
    }

    /// Counts it for `client` too, whose address may have at most `most`; 0: no limit, and it is not counted for the
    /// address. Called at most once.
    ///
    /// # Errors
    /// [`Full::Address`]: the limit is reached. The permit stays counted in the total until it is dropped.
    pub fn claim(&mut self, most: usize, client: IpAddr) -> Result<(), Full> {
        if most == 0 {
            return Ok(());
        }
        self.tally.by_address.update(client, |count| {
            if *count >= most {
                return Err(Full::Address);
            }
            *count += 1;
            Ok(())
        })?;
        self.address = Some(client);
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.settle();
        self.tally.total.fetch_sub(1, Relaxed);
        if let Some(address) = self.address {
            self.tally.by_address.update(address, |count| *count -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    #[test]
    fn a_table_gives_memory_back_but_not_for_a_few_addresses() {
        // All in one shard.
        let address = |n: u8| IpAddr::from([10, 0, n, 0]);
        let capacity_after = |capacity: usize, addresses: u8| {
            let table = AddressTable::default();
            *table.shard(address(0)).lock() = HashMap::with_capacity(capacity);
            (0..addresses).for_each(|n| table.update(address(n), |value| *value = 1));
            table.retain(|_| true);
            table.shard(address(0)).lock().capacity()
        };
        assert!(capacity_after(448, 4) < 80, "four addresses do not need so much");
        assert_eq!(capacity_after(112, 12), 112, "four times 12, and 64");
    }

    #[test]
    fn addresses_side_by_side_are_in_different_shards() {
        let table = AddressTable::default();
        (0..=u8::MAX).take(SHARDS).for_each(|n| table.update(client(n), |value| *value = 1));
        assert!(table.0.iter().all(|shard| shard.lock().len() == 1) && !table.is_empty());
    }

    #[test]
    fn the_log_does_not_show_whose_addresses_a_table_has() {
        let table = AddressTable::default();
        table.update(client(1), |count: &mut usize| *count += 1);
        assert_eq!(format!("{table:?}"), "AddressTable { .. }");
    }

    fn client(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn an_address_without_a_value_is_not_in_the_table() {
        let table = AddressTable::default();
        table.update(client(1), |count| *count += 2);
        table.update(client(2), |count| *count += 0);
        assert_eq!((table.get(client(1)), table.get(client(2)), table.len()), (2, 0, 1));
        table.update(client(1), |count| *count -= 2);
        assert!(table.is_empty());
    }

    #[test]
    fn addresses_of_one_subscriber_have_one_value() {
        let table = AddressTable::default();
        for address in ["2001:db8::1", "2001:db8::2", "::ffff:10.0.0.1", "10.0.0.1"] {
            table.update(address.parse().expect("address"), |count: &mut usize| *count += 1);
        }
        assert_eq!((table.get("2001:db8::3".parse().expect("address")), table.get(client(1)), table.len()), (2, 2, 2));
    }

    #[test]
    fn a_full_shard_has_one_value_for_all_further_addresses() {
        let table = AddressTable::default();
        // All in one shard.
        let in_shard = |n: u8| IpAddr::from([10, 0, n, 1]);
        for n in 0..10 {
            table.update_at_most(3, in_shard(n), |count: &mut usize| *count += 1);
        }
        assert_eq!(table.len(), 4);
        assert_eq!(table.update_at_most(3, in_shard(200), |count| *count), 7, "of the seven that had no room");
        assert_eq!(table.update_at_most(3, in_shard(2), |count| *count), 1, "of one that was there before");
        table.retain(|count| *count > 1);
        assert_eq!(table.len(), 1);
        table.clear();
        assert!(table.is_empty());
    }

    #[test]
    fn what_is_counted_is_bounded_in_total_and_for_each_address() {
        let tally = Arc::new(Tally::default());
        let enter = |n| {
            let mut permit = tally.enter(3)?;
            permit.claim(2, client(n)).map(|()| permit)
        };
        let first = enter(1).expect("room");
        let second = enter(1).expect("room");
        assert_eq!(enter(1).err(), Some(Full::Address));
        let mut third = enter(2).expect("room for another address");
        assert_eq!(enter(3).err(), Some(Full::Total));
        drop(first);
        assert_eq!((tally.count(), tally.unsettled()), (2, 2));
        assert!(enter(1).is_ok());
        assert!(tally.enter(3).expect("room").claim(0, client(1)).is_ok(), "0 is no limit");
        assert_eq!((tally.count(), tally.unsettled(), tally.by_address.len()), (2, 2, 2));
        third.settle();
        third.settle();
        assert_eq!((tally.count(), tally.unsettled()), (2, 1));
        drop((second, third));
        assert_eq!((tally.count(), tally.unsettled()), (0, 0));
    }

    #[test]
    fn threads_that_enter_at_the_same_time_exceed_no_limit() {
        const THREADS: usize = 4;
        let (tally, barrier) = (Arc::new(Tally::default()), Arc::new(Barrier::new(THREADS)));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (tally, barrier) = (Arc::clone(&tally), Arc::clone(&barrier));
                thread::spawn(move || {
                    barrier.wait();
                    for _ in 0..1_000 {
                        let Ok(mut permit) = tally.enter(3) else { continue };
                        let _is_claimed = permit.claim(2, client(1));
                        assert!(tally.count() <= 3 && tally.by_address.get(client(1)) <= 2);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no limit was exceeded");
        }
        assert_eq!((tally.count(), tally.by_address.len()), (0, 0));
    }
}
