# Fails if an object compiled for one tier could put its instructions where every CPU runs them:
# a weak symbol (the linker keeps one copy for all) or a constructor that runs at load.
# -DNM= -DREADELF= -DOBJECTS=comma-separated
string(REPLACE "," ";" objects "${OBJECTS}")
if(NOT objects)
  message(FATAL_ERROR "no objects given")
endif()
foreach(object IN LISTS objects)
  execute_process(COMMAND ${NM} -C ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  if(symbols MATCHES "[^\n]* [uvVwW] [^\n]*")
    message(FATAL_ERROR "${object} has a weak symbol: ${CMAKE_MATCH_0}")
  endif()
  execute_process(
    COMMAND ${READELF} -SW ${object} OUTPUT_VARIABLE sections COMMAND_ERROR_IS_FATAL ANY)
  if(sections MATCHES "\\.(init_array|ctors)")
    message(FATAL_ERROR "${object} has code that runs when the module is loaded: ${CMAKE_MATCH_0}")
  endif()
endforeach()
