//! A question by hand, as the C library may hide what came over the wire.
use std::io::{Read, Write};

use super::{address, open, udp_socket};

/// `rcode`, whether it is truncated, and how many answers there are.
pub fn ask(transport: &str, to: &str, name: &str) -> Result<String, String> {
    let mut question = vec![0x5a, 0xa5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    question.extend([0, 0, 1, 0, 1]);
    let answer = match transport {
        "udp" => {
            let to = address(to)?;
            let socket = udp_socket(to)?;
            socket.set_read_timeout(Some(super::PATIENCE)).map_err(|e| e.to_string())?;
            socket.send_to(&question, to).map_err(|e| e.to_string())?;
            let mut buffer = vec![0; 65_536];
            let n = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
            buffer.truncate(n);
            buffer
        }
        _ => {
            let mut stream = open(to)?;
            let framed = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
            stream.write_all(&framed).map_err(|e| e.to_string())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).map_err(|e| e.to_string())?;
            let mut buffer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut buffer).map_err(|e| e.to_string())?;
            buffer
        }
    };
    if answer.len() < 12 || answer[..2] != question[..2] {
        return Err(format!("{answer:?} is no answer"));
    }
    let answers = u16::from_be_bytes([answer[6], answer[7]]);
    Ok(format!("rcode {} truncated {} answers {answers}", answer[3] & 15, answer[2] >> 1 & 1))
}
