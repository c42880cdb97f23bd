//! The threads that serve connections: one for each core, each with a runtime of its own.
//!
//! A connection, and the session that it becomes, stays on one thread with all its tasks: nothing
//! that wakes it crosses threads, and what is read lies in the caches of the core that writes it.

use std::{
    io,
    num::NonZero,
    pin::pin,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task,
    time::timeout,
};

use super::core_sharing::Turns;

/// A thread keeps a connection that it has accepted unless it has more tasks than another by more than
/// one, and one in so many of the other's: a hand-over costs some system calls.
const SLACK: usize = 16;
/// A thread wakes so often, whatever there is to do. A timer that is set while an earlier one runs costs
/// no system call, and all that a log-in sets are longer.
const TICK: Duration = Duration::from_secs(1);

/// Where connections are served. Goes on for as long as its [`Threads`], or the present runtime, do.
pub struct Workers(Box<[Handle]>);

impl Workers {
    /// All on the present runtime.
    pub fn here() -> Self {
        Self([Handle::current()].into())
    }

    /// The runtimes that connections are served on.
    pub fn runtimes(&self) -> &[Handle] {
        &self.0
    }

    /// Spawns one of the futures that `make` makes on each thread; `make` is told which one it is.
    ///
    /// # Errors
    /// What `make` could not make; then none runs.
    pub fn spawn_on_each<F>(&self, make: impl Fn(usize) -> io::Result<F>) -> io::Result<Vec<task::JoinHandle<()>>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut spawned: Vec<task::JoinHandle<()>> = Vec::with_capacity(self.0.len());
        for (at, runtime) in self.0.iter().enumerate() {
            let _there = runtime.enter();
            match make(at) {
                Ok(future) => spawned.push(runtime.spawn(future)),
                Err(error) => {
                    spawned.iter().for_each(task::JoinHandle::abort);
                    return Err(error);
                }
            }
        }
        Ok(spawned)
    }

    /// Another thread that is to serve a connection accepted on thread `at`, because it has less
    /// to do: nearly all tasks are a connection each.
    pub fn idler_than(&self, at: usize) -> Option<&Handle> {
        let tasks = |runtime: &Handle| runtime.metrics().num_alive_tasks();
        let least = self.0.iter().min_by_key(|runtime| tasks(runtime))?;
        let few = tasks(least);
        (tasks(&self.0[at]) > few + 1 + few / SLACK).then_some(least)
    }
}

/// Running threads; dropped, they end with what they serve.
pub struct Threads {
    runtimes: Vec<Handle>,
    running: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Threads {
    /// A thread for each core that this process may use.
    ///
    /// # Errors
    /// The system's, when it has no thread or descriptor left.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let mut this = Self { runtimes: Vec::new(), running: Vec::new() };
        let turns = Turns::new(count);
        for i in 0..count {
            let (sleeps, wakes, places) = (Arc::clone(&turns), Arc::clone(&turns), Arc::clone(&turns));
            let runtime = Builder::new_current_thread()
                .on_thread_park(move || sleeps.sleeps(i))
                .on_thread_unpark(move || wakes.wakes(i))
                .enable_all()
                .build()?;
            let handle = runtime.handle().clone();
            let (end, ended) = oneshot::channel::<()>();
            let thread = thread::Builder::new().name(format!("worker-{i}")).spawn(move || {
                places.take_place(i);
                runtime.block_on(async {
                    let mut ended = pin!(ended);
                    while timeout(TICK, &mut ended).await.is_err() {}
                });
                // A look-up that hangs holds nobody back.
                runtime.shutdown_background();
            })?;
            this.runtimes.push(handle);
            this.running.push((end, thread));
        }
        Ok(this)
    }

    /// These threads as the place for connections.
    pub fn workers(&self) -> Workers {
        Workers(self.runtimes.clone().into())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let threads: Vec<_> = self
            .running
            .drain(..)
            .map(|(end, thread)| {
                drop(end);
                thread
            })
            .collect();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_has_too_much_hands_over_and_all_ends_with_the_threads() {
        let threads = Threads::start().expect("threads");
        let workers = threads.workers();
        let (says, mut said) = mpsc::unbounded_channel();
        let accepting = workers.spawn_on_each(|at| {
            let says = says.clone();
            Ok(async move {
                let _ = says.send((at, thread::current().id()));
                pending().await
            })
        });
        assert_eq!(accepting.expect("spawned").len(), threads.running.len());
        let mut seen = Vec::new();
        for _ in 0..threads.running.len() {
            let (at, id) = said.recv().await.expect("it runs");
            assert_eq!(id, threads.running[at].1.thread().id());
            seen.push(id);
        }
        assert!(workers.idler_than(0).is_none(), "all have one");
        let others = threads.running.len() > 1;
        workers.0[0].spawn(pending::<()>());
        assert!(workers.idler_than(0).is_none(), "one more is no matter");
        workers.0[0].spawn(pending::<()>());
        assert_eq!(workers.idler_than(0).is_some(), others);
        drop((threads, says));
        assert!(said.recv().await.is_none(), "none goes on");
    }
}
