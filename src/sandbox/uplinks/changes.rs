//! What callers ask for while it runs: another network, or one less ([`super`] has the theory).
use std::time::Instant;

use super::*;

impl Uplinks {
    /// Begin with what the next caller wants.
    pub(super) fn begin_work(&mut self, now: Instant) {
        while self.work.is_none()
            && let Some((caller, request)) = self.callers.first()
        {
            let begun = match request {
                Request::Connect { join } => self.begin_connect(caller, &join, now),
                Request::Disconnect { network } => self.begin_disconnect(caller, &network, now),
            };
            match begun {
                Ok(work) => self.work = Some(work),
                Err(error) => self.callers.answer(caller, Some(error)),
            }
        }
    }

    pub(super) fn expire_work(&mut self, now: Instant) {
        match &self.work {
            Some(Work::Connect { until, .. }) if *until <= now => {
                self.undo(
                    "it took too long: neither the sandbox's agent nor the network's gateway has answered".into(),
                );
            }
            Some(Work::Disconnect { until, .. }) if *until <= now => self.finish_disconnect(),
            _ => {}
        }
    }

    pub(super) fn begin_connect(&mut self, caller: u64, join: &Join, now: Instant) -> Result<Work, String> {
        let name = &self.about.name;
        if self.all.iter().any(|uplink| uplink.seat.network.name == join.network) {
            return Err(format!("the sandbox {name} is on the network {} already", join.network));
        }
        if self.watch.is_none() {
            self.watch = Some(HostWatch::new().map_err(|e| SandboxError::from(e).to_string())?);
            self.watch_entry();
        }
        let networks = Networks::open().map_err(|e| e.to_string())?;
        let place = networks.take(&mut self.record.registration, join).map_err(|e| e.to_string())?;
        let mut seat = seats::seat(&self.about, join, place, join.ifname.clone().unwrap_or_default());
        seat.default_route = seats::is_open(&seat.network) && !self.all.iter().any(|uplink| uplink.seat.default_route);
        let order = uplink::order(&seat, join.ifname.clone(), self.about.link, true);
        let number = self.number();
        let mut uplink = Uplink::new(number, seat, order.clone());
        if let Err(error) = uplink.start_gateway(&self.states, self.about.logging) {
            networks.give_back(&mut self.record.registration, &join.network);
            return Err(error.to_string());
        }
        self.all.push(uplink);
        self.orders.push_back(ToAgent::Make { order: number, interface: order });
        Ok(Work::Connect { caller, uplink: number, until: now + WORK })
    }

    /// The new network works.
    pub(super) fn finish_connect(&mut self) {
        let Some(Work::Connect { caller, uplink, .. }) = self.work.take() else { return };
        if self.about.default_net.is_some() && self.at(uplink).is_some_and(|at| !self.all[at].seat.default_route) {
            self.move_default();
        }
        if self.record.state.mode == Mode::None {
            self.record.state.mode = Mode::Bridge;
        }
        self.write_down_seats();
        self.rewrite_files();
        self.callers.answer(caller, None);
    }

    /// The new network does not work: as if it had never been asked for.
    pub(super) fn undo(&mut self, why: String) {
        let Some(Work::Connect { caller, uplink: number, .. }) = self.work.take() else { return };
        if let Some(at) = self.at(number) {
            let mut uplink = self.all.remove(at);
            if let Some(link) = uplink.take_link() {
                let name = uplink.seat.endpoint.ifname.clone();
                let order = self.number();
                self.orders.push_back(ToAgent::Remove { order, name, interface: uplink.order.clone() });
                self.removing.push((order, link));
            } else {
                self.unwanted.push((number, uplink.order.clone()));
            }
            self.forget(&uplink);
        }
        self.callers.answer(caller, Some(why));
    }

    pub(super) fn begin_disconnect(&mut self, caller: u64, network: &str, now: Instant) -> Result<Work, String> {
        let name = &self.about.name;
        let Some(at) = self.all.iter().position(|uplink| uplink.seat.network.name == network) else {
            return Err(format!("the sandbox {name} is not on the network {network}"));
        };
        if !self.all[at].is_shared() {
            return Err(format!(
                "the network {network} is the sandbox's own, which nobody else could connect it to again"
            ));
        }
        self.all[at].leaving = true;
        // First, so that it does not complain of a link that is gone.
        self.all[at].give_up();
        if std::mem::take(&mut self.all[at].seat.default_route) {
            self.move_default();
        }
        let order = self.number();
        let uplink = &self.all[at];
        let (name, interface) = (uplink.seat.endpoint.ifname.clone(), uplink.order.clone());
        self.orders.push_back(ToAgent::Remove { order, name, interface });
        Ok(Work::Disconnect { caller, uplink: uplink.number, order, until: now + WORK })
    }

    pub(super) fn finish_disconnect(&mut self) {
        let Some(Work::Disconnect { caller, uplink: number, .. }) = self.work.take() else { return };
        if let Some(at) = self.at(number) {
            let uplink = self.all.remove(at);
            self.forget(&uplink);
            drop(uplink);
            self.living = self.living.take().filter(|_| self.all.iter().any(Uplink::is_shared));
            if self.all.is_empty() {
                self.record.state.mode = Mode::None;
            }
            self.move_main();
        }
        self.write_down_seats();
        self.rewrite_files();
        self.callers.answer(caller, None);
    }

    /// The sandbox is not on this network any more.
    pub(super) fn forget(&mut self, uplink: &Uplink) {
        if self.main == Some(uplink.number) {
            self.main = None;
            self.joined = false;
        }
        self.linked.retain(|(number, _), _| *number != uplink.number);
        if let Ok(networks) = Networks::open() {
            networks.give_back(&mut self.record.registration, &uplink.seat.network.name);
        }
    }

    /// Have the default route lead where it should now.
    pub(super) fn move_default(&mut self) {
        let candidates = || self.all.iter().filter(|uplink| !uplink.leaving && seats::is_open(&uplink.seat.network));
        let named = |uplink: &&Uplink| Some(&uplink.seat.network.name) == self.about.default_net.as_ref();
        let next = candidates().find(named).or_else(|| candidates().next()).map(|uplink| uplink.number);
        for uplink in &mut self.all {
            uplink.seat.default_route = Some(uplink.number) == next;
        }
        if let Some(at) = next.and_then(|number| self.at(number)) {
            let order = self.number();
            let (name, interface) = (self.all[at].seat.endpoint.ifname.clone(), self.all[at].order.clone());
            self.orders.push_back(ToAgent::TakeDefault { order, name, interface });
        }
    }
}
