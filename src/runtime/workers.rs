//! The workers: threads that serve connections, one for each core. Each has a runtime of its own.
//!
//! A connection, and the session that it becomes, stays on one worker with all its tasks. So no wake-up crosses
//! threads, and bytes that were read are in the caches of the core that writes them.

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

use super::core_sharing::CoreSharing;

/// A connection stays on the worker that accepted it unless that worker has more tasks than another one by more than 1
/// and a sixteenth of the other's: a hand-over costs some system calls. Example: 18 tasks and 16 tasks are similar, 19
/// and 16 are not.
const SLACK: usize = 16;
/// Each worker has a timer of this length that always runs. tokio makes a system call when a timer is set that ends
/// before all others, and all timers of a log-in are longer than this one.
const TICK: Duration = Duration::from_secs(1);

/// The runtimes that serve connections. They run as long as their [`Threads`], or the present runtime.
#[derive(Clone)]
pub struct Workers(Box<[Handle]>);

impl Workers {
    /// The present runtime as the only worker.
    pub fn here() -> Self {
        Self([Handle::current()].into())
    }

    /// The runtime of each worker.
    pub fn runtimes(&self) -> &[Handle] {
        &self.0
    }

    /// Spawns `count` futures on the workers in turn: the first one on the first worker. `make` makes a future, and gets
    /// its number and that of its worker.
    ///
    /// # Errors
    /// The first error of `make`; then no future runs.
    pub fn spawn_in_turn<F>(
        &self,
        count: usize,
        make: impl Fn(usize, usize) -> io::Result<F>,
    ) -> io::Result<Vec<task::JoinHandle<()>>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut spawned: Vec<task::JoinHandle<()>> = Vec::with_capacity(count);
        for (number, (worker, runtime)) in self.0.iter().enumerate().cycle().take(count).enumerate() {
            let _entered = runtime.enter();
            match make(number, worker) {
                Ok(future) => spawned.push(runtime.spawn(future)),
                Err(error) => {
                    spawned.iter().for_each(task::JoinHandle::abort);
                    return Err(error);
                }
            }
        }
        Ok(spawned)
    }

    /// Waits until every worker has run a task that does nothing. What was spawned on it before has then begun, too.
    pub async fn respond(&self) {
        let tasks: Vec<_> = self.0.iter().map(|runtime| runtime.spawn(async {})).collect();
        for task in tasks {
            // A runtime that has ended does not run the task, and never will.
            let _ended = task.await;
        }
    }

    /// The worker that should serve a connection instead of `worker`, because it is less busy; `None`: `worker` should
    /// serve it. Workers are compared by their number of tasks: nearly each task is a connection.
    pub fn less_busy_than(&self, worker: usize) -> Option<&Handle> {
        let tasks = |runtime: &Handle| runtime.metrics().num_alive_tasks();
        let least = self.0.iter().min_by_key(|runtime| tasks(runtime))?;
        let fewest = tasks(least);
        (tasks(&self.0[worker]) > fewest + 1 + fewest / SLACK).then_some(least)
    }
}

/// The threads of the workers. When this is dropped, they end, and everything that they serve.
pub struct Threads {
    runtimes: Vec<Handle>,
    running: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Threads {
    /// Starts a worker for each core that this process may use.
    ///
    /// # Errors
    /// The system's: it has no thread or descriptor left.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let mut this = Self { runtimes: Vec::new(), running: Vec::new() };
        let sharing = CoreSharing::new(count);
        for worker in 0..count {
            let [parks, unparks, joins] = std::array::from_fn(|_| Arc::clone(&sharing));
            let runtime = Builder::new_current_thread()
                .on_thread_park(move || parks.sleeps(worker))
                .on_thread_unpark(move || unparks.wakes(worker))
                .enable_all()
                .build()?;
            let handle = runtime.handle().clone();
            let (end, ended) = oneshot::channel::<()>();
            let thread = thread::Builder::new().name(format!("worker-{worker}")).spawn(move || {
                joins.join(worker);
                runtime.block_on(async {
                    let mut ended = pin!(ended);
                    while timeout(TICK, &mut ended).await.is_err() {}
                });
                // Without waiting for a look-up of a name, which may hang.
                runtime.shutdown_background();
            })?;
            this.runtimes.push(handle);
            this.running.push((end, thread));
        }
        Ok(this)
    }

    /// The workers on these threads.
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
        let accepting = workers.spawn_in_turn(threads.running.len(), |number, at| {
            assert_eq!(number, at);
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
        assert!(workers.less_busy_than(0).is_none(), "each has one task");
        let others = threads.running.len() > 1;
        workers.0[0].spawn(pending::<()>());
        assert!(workers.less_busy_than(0).is_none(), "one more is not enough");
        workers.0[0].spawn(pending::<()>());
        assert_eq!(workers.less_busy_than(0).is_some(), others);
        drop((threads, says));
        assert!(said.recv().await.is_none(), "no task continues");
    }
}
