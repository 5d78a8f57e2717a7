//! What an event is about, packed into mio's token: the kind in the low four bits, an index above.
use mio::Token;

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A port's link.
    Port,
    /// The host side of a TCP flow.
    Tcp,
    /// The socket of a UDP flow.
    Udp,
    /// The socket of a ping flow.
    Ping,
    /// The control thread has sent a command.
    Command,
    /// A listener: a published TCP port, or one inside a sandbox.
    Listener,
    /// One side of a spliced connection.
    Splice,
    /// The socket of a published UDP port, or one inside a sandbox.
    Datagrams,
    /// The other socket of a datagram flow past the link.
    Detour,
    /// The connection to a sandbox's agent.
    Agent,
}

const BITS: usize = 4;

/// The token of the port at an index.
pub fn port(index: u32) -> Token {
    Token((index as usize) << BITS)
}

/// The token of a TCP flow's host side.
pub fn tcp(index: u32) -> Token {
    Token((index as usize) << BITS | 1)
}

/// The token of a UDP flow's socket.
pub fn udp(index: u32) -> Token {
    Token((index as usize) << BITS | 2)
}

/// The token of a ping flow's socket.
pub fn ping(index: u32) -> Token {
    Token((index as usize) << BITS | 3)
}

/// The token of a TCP listener.
pub fn listener(index: u32) -> Token {
    Token((index as usize) << BITS | 5)
}

/// The token of one side of a spliced connection.
pub fn splice(index: u32) -> Token {
    Token((index as usize) << BITS | 6)
}

/// The token of a socket that takes datagrams for a sandbox, or from one.
pub fn datagrams(index: u32) -> Token {
    Token((index as usize) << BITS | 7)
}

/// The token of the other socket of a datagram flow past the link.
pub fn detour(index: u32) -> Token {
    Token((index as usize) << BITS | 8)
}

/// The token of the connection to a sandbox's agent.
pub fn agent(index: u32) -> Token {
    Token((index as usize) << BITS | 9)
}

/// The token of the control thread's waker.
pub const COMMAND: Token = Token(4);

/// What a token is about.
pub fn read(token: Token) -> Option<(Kind, u32)> {
    let index = (token.0 >> BITS) as u32;
    let kind = match token.0 & ((1 << BITS) - 1) {
        0 => Kind::Port,
        1 => Kind::Tcp,
        2 => Kind::Udp,
        3 => Kind::Ping,
        4 => Kind::Command,
        5 => Kind::Listener,
        6 => Kind::Splice,
        7 => Kind::Datagrams,
        8 => Kind::Detour,
        9 => Kind::Agent,
        _ => return None,
    };
    Some((kind, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_what_it_was_made_of() {
        for index in [0, 1, 77, u32::MAX] {
            assert_eq!(read(port(index)), Some((Kind::Port, index)));
            assert_eq!(read(tcp(index)), Some((Kind::Tcp, index)));
            assert_eq!(read(udp(index)), Some((Kind::Udp, index)));
            assert_eq!(read(ping(index)), Some((Kind::Ping, index)));
            assert_eq!(read(listener(index)), Some((Kind::Listener, index)));
            assert_eq!(read(splice(index)), Some((Kind::Splice, index)));
            assert_eq!(read(datagrams(index)), Some((Kind::Datagrams, index)));
            assert_eq!(read(detour(index)), Some((Kind::Detour, index)));
            assert_eq!(read(agent(index)), Some((Kind::Agent, index)));
        }
        assert_eq!(read(COMMAND), Some((Kind::Command, 0)));
    }
}
